"""The compiled look: a few thousand elements at a time are widened to float64, and everything is read from those.

They stay in a core's own cache, so each group of sums is a separate loop, which runs only if it is asked for. What is
not finite, and what a mask leaves out, is sifted out before; moments of a block are taken about its mean, and blocks
merge as `merge_all` merges rows.

numba keeps what it compiled beside this file, and looks at no other file to see whether it is out of date. So nothing
here may come from another module: the places of the numbers and of the bins stand here again, and a test compares them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# The fields of `Row`, and the bins of log2_bins.py.
(
    COUNT,
    MEAN,
    M2,
    M3,
    M4,
    MINIMUM,
    BAD_BATCH,
    MAXIMUM,
    NORM_MAX,
    CHANNELS,
    MIXED,
    ZEROS,
    NONFINITE,
    TOKENS,
    NORM_SUM,
    FIRST_BIN,
) = range(16)
SMALLEST_EXPONENT, SIDE, BINS = -18, 32, 65
# The values of `Group`.
MOMENTS, EXTREMES, NORMS, BY_CHANNEL, HISTOGRAM = 1, 2, 4, 8, 16

BLOCK = 4096  # elements: 32 kB in float64
LANES = 4  # counters of one bin: each waits for what was last written to it
TOGETHER = np.uintp(4)  # tokens for which the numbers of a channel are loaded and stored once


def _bins_of_tops() -> Any:
    """Return the bin of each of the upper 12 bits of a float64, its sign and exponent, ``(4096,)``."""
    tops = np.arange(4096)
    side = np.clip((tops & 0x7FF) - (1023 + SMALLEST_EXPONENT - 1), 0, SIDE)
    return (SIDE + np.where(tops < 2048, side, -side)).astype(np.uint8)


_BINS_OF_TOPS = _bins_of_tops()

_EXPONENT = np.int64(0x7FF << 52)
_SIGN = np.int64(-(2**63))
_MAGNITUDE = np.int64(2**63 - 1)

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Sums in lanes, in an order that depends on the length alone; nan and infinity keep their meaning.
_IN_LANES: dict[str, Any] = {**_OPTIONS, "fastmath": {"reassoc", "contract", "nsz"}}


def _widen(bits: Any, half: Any, words: Any, out: Any) -> Any:
    """Write elements to ``out``, float64, from their bits; the compiler takes the form for the width of ``bits``."""


@overload(_widen, jit_options=_OPTIONS)
def _widen_typed(bits: Any, half: Any, words: Any, out: Any) -> Any:
    return {64: _widen_64, 32: _widen_32, 16: _widen_16}[bits.dtype.bitwidth]


def _widen_64(bits: Any, half: Any, words: Any, out: Any) -> Any:
    x = bits.view(np.float64)
    for i in range(len(x)):
        out[i] = x[i]


def _widen_32(bits: Any, half: Any, words: Any, out: Any) -> Any:
    x = bits.view(np.float32)
    for i in range(len(x)):
        out[i] = x[i]


def _widen_16(bits: Any, half: Any, words: Any, out: Any) -> Any:
    size = len(bits)
    if not half:  # a bfloat16 is the upper half of a float32
        for i in range(size):
            words[i] = np.int32(bits[i]) << 16
        x = words.view(np.float32)
        for i in range(size):
            out[i] = x[i]
        return
    for i in range(size):  # as if all were subnormal
        out[i] = np.float64(np.int64(bits[i]) & 0x7FFF) * 2.0**-24
    wide = out.view(np.int64)
    for i in range(size):
        b = np.int64(bits[i])
        magnitude = b & 0x7FFF
        normal = (magnitude << 42) + (np.int64(1023 - 15) << 52)
        if magnitude >= 0x7C00:
            normal |= _EXPONENT
        wide[i] = (normal if magnitude >= 0x400 else wide[i]) | ((b << 48) & _SIGN)


@njit(**_OPTIONS)
def _sift(x: Any, keep: Any, finite: Any) -> tuple[int, int]:
    """Collect the finite elements that count, and set all others to 0; ``keep`` is empty where all count.

    Returns:
        How many were collected, and how many count and are not finite.
    """
    size, bad = 0, 0
    for i in range(len(x)):
        if len(keep) and not keep[i]:
            x[i] = 0.0
        elif np.isfinite(x[i]):
            finite[size] = x[i]
            size += 1
        else:
            x[i] = 0.0
            bad += 1
    return size, bad


@njit(**_IN_LANES)
def _total(x: Any) -> float:
    total = 0.0
    for i in range(len(x)):
        total += x[i]
    return total


@njit(**_IN_LANES)
def _powers(x: Any, mean: float) -> tuple[float, float, float]:
    """Return the sums of the second, third and fourth powers of deviations."""
    second = third = fourth = 0.0
    for i in range(len(x)):
        d = x[i] - mean
        square = d * d
        second += square
        third += square * d
        fourth += square * square
    return second, third, fourth


@njit(**_IN_LANES)
def _add_squares(x: Any, width: int, squares: Any) -> None:
    """Add the sum of squares of each token of ``width`` elements."""
    across = np.uintp(width)  # an index that is never negative; a slice of each token would take longer than its sum
    for token in range(np.uintp(len(x) // width)):
        total = 0.0
        for j in range(across):
            total += x[token * across + j] * x[token * across + j]
        squares[token] += total


@njit(**_IN_LANES)
def _add_channels(x: Any, width: int, left: int, sums: Any, peaks: Any) -> None:
    """Add tokens of ``width`` elements to the channels from ``left`` on.

    A peak is kept as the bits of an absolute value, which are ordered as it is.
    """
    bits, across, start, tokens = x.view(np.int64), np.uintp(width), np.uintp(left), np.uintp(len(x) // width)
    whole = tokens - tokens % TOGETHER
    for token in range(np.uintp(0), whole, TOGETHER):
        for j in range(across):
            total, peak = sums[start + j], peaks[start + j]
            for more in range(TOGETHER):
                place = (token + more) * across + j
                total += x[place] * x[place]
                peak = max(peak, bits[place] & _MAGNITUDE)
            sums[start + j], peaks[start + j] = total, peak
    for token in range(whole, tokens):
        for j in range(across):
            place = token * across + j
            sums[start + j] += x[place] * x[place]
            peaks[start + j] = max(peaks[start + j], bits[place] & _MAGNITUDE)


@njit(**_OPTIONS)
def _extremes(x: Any) -> tuple[int, int, int]:
    """Return keys of minimum and maximum, see `_key`, and the zeros: integers are compared many at a time."""
    bits = x.view(np.int64)
    low, high, zeros = _MAGNITUDE, _SIGN, 0
    for i in range(len(bits)):
        key = _key(bits[i])
        low = min(low, key)
        high = max(high, key)
        zeros += (bits[i] & _MAGNITUDE) == 0
    return low, high, zeros


@njit(**_OPTIONS)
def _key(bits: int) -> int:
    """Return an integer that is ordered as the float64 of these bits, from which this returns the bits."""
    return bits ^ ((bits >> 63) & _MAGNITUDE)


@njit(**_OPTIONS)
def _count(x: Any, bins: Any) -> None:
    """Add elements to ``bins (LANES, BINS)``, each to that of its sign and exponent."""
    bits, size = x.view(np.int64), len(x)
    whole = size - size % LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            bins[lane, _BINS_OF_TOPS[(bits[i + lane] >> 52) & 0xFFF]] += 1
    for i in range(whole, size):
        bins[0, _BINS_OF_TOPS[(bits[i] >> 52) & 0xFFF]] += 1


@njit(**_OPTIONS)
def _join(row: Any, count: float, mean: float, m2: float, m3: float, m4: float) -> None:
    """Add the moments of other elements to those of a row."""
    if count == 0:
        return
    n, apart = row[COUNT] + count, mean - row[MEAN]
    ours, theirs = -apart * (count / n), apart * (row[COUNT] / n)  # from the mean of all
    far, m2_far = row[COUNT] * ours * ours, row[M2]
    row[M4] += ours * (4 * row[M3] + ours * (6 * m2_far + far))
    row[M3] += ours * (3 * m2_far + far)
    row[M2] += far
    far = count * theirs * theirs
    row[M4] += m4 + theirs * (4 * m3 + theirs * (6 * m2 + far))
    row[M3] += m3 + theirs * (3 * m2 + far)
    row[M2] += m2 + far
    row[MEAN] += apart * (count / n)
    row[COUNT] = n


@njit(**_OPTIONS)
def _gather(bits: Any, half: bool, keep: Any, left: int, right: int, words: Any, block: Any) -> int:
    """Widen the columns from ``left`` to ``right`` of the tokens that count; return how many tokens these are."""
    count, width = bits.shape
    if right - left < width:  # so wide that it is one token
        if keep.shape[1] == 1 and not keep[0, 0]:
            return 0
        _widen(bits[0, left:right], half, words, block)
        return 1
    if keep.shape[1] != 1 or width == 1 or keep.all():
        _widen(bits.reshape(bits.size), half, words, block)
        return count
    chosen = first = 0
    while first < count:  # padding leaves runs of tokens
        past = first
        while past < count and keep[past, 0]:
            past += 1
        if past > first:
            _widen(bits[first:past].reshape((past - first) * width), half, words, block[chosen * width :])
            chosen += past - first
        first = past + 1
    return chosen


@njit(**_OPTIONS)
def _flatten(keep: Any, flags: Any, any_kept: Any) -> Any:
    """Return which elements count, in one row, and mark the tokens that have any."""
    place = 0
    for token in range(keep.shape[0]):
        for column in range(keep.shape[1]):
            flags[place] = keep[token, column]
            any_kept[token] |= flags[place]
            place += 1
    return flags[:place]


@njit(**_OPTIONS)
def _add_moments(seen: Any, x: Any, total: float) -> None:
    mean = total / len(x)
    second, third, fourth = _powers(x, mean)
    _join(seen, len(x), mean, second, third, fourth)


@njit(**_OPTIONS)
def _add_extremes(seen: Any, x: Any, pair: Any) -> None:
    low, high, zeros = _extremes(x)
    pair[0], pair[1] = _key(low), _key(high)
    found = pair.view(np.float64)
    seen[MINIMUM], seen[MAXIMUM] = min(seen[MINIMUM], found[0] + 0.0), max(seen[MAXIMUM], found[1] + 0.0)
    seen[ZEROS] += zeros


@njit(**_OPTIONS)
def _add_tokens(seen: Any, squares: Any) -> None:
    for square in squares:
        norm = np.sqrt(square)
        seen[NORM_SUM] += norm
        seen[NORM_MAX] = max(seen[NORM_MAX], norm)


@njit(**_OPTIONS)
def _hand_over(seen: Any, bins: Any, batch: float, row: Any) -> None:
    """Add what was seen to the row of the layer."""
    _join(row, seen[COUNT], seen[MEAN], seen[M2], seen[M3], seen[M4])
    for field in (ZEROS, NONFINITE, TOKENS, NORM_SUM):
        row[field] += seen[field]
    for field in (MAXIMUM, NORM_MAX, CHANNELS):
        row[field] = max(row[field], seen[field])
    row[MINIMUM] = min(row[MINIMUM], seen[MINIMUM])
    if seen[NONFINITE]:
        row[BAD_BATCH] = min(row[BAD_BATCH], batch)
    for lane in range(LANES):
        for place in range(BINS):
            row[FIRST_BIN + place] += bins[lane, place]


@njit(**_OPTIONS)
def _add_typed(bits: Any, half: Any, keep: Any, groups: Any, batch: Any, row: Any, sums: Any, peaks: Any) -> None:
    """Add tokens to a row and its channels.

    Args:
        bits: ``(N, D)``, the elements as integers of their width; neither is 0.
        half: whether 16 bits are a float16, and not a bfloat16.
        keep: bool ``(N, 1)`` or ``(N, D)``; ``(0, 0)`` for all.
        groups: what to compute, the value of a `Group`.
        batch: the batch's index; inf for none.
        row: ``(ROW_SIZE,)``.
        sums: ``(D,)`` if the channels are asked for.
        peaks: the same.
    """
    count, width = bits.shape
    step, piece = max(1, BLOCK // width), min(BLOCK, width)
    size = min(step, count) * piece
    by_element, by_channel = keep.shape[1] > 1 or (keep.size > 0 and width == 1), groups & BY_CHANNEL != 0
    block, sifted = np.empty(size), np.empty(size)
    words = np.empty(size if bits.itemsize == 2 else 0, np.int32)
    flags, pair = np.empty(size if by_element else 0, np.bool_), np.empty(2, np.int64)
    squares, any_kept = np.empty(step), np.empty(step, np.bool_)
    bins, seen = np.zeros((LANES, BINS), np.int64), np.zeros(FIRST_BIN)
    seen[MINIMUM], seen[MAXIMUM] = np.inf, -np.inf
    of_channels = np.zeros(width if by_channel else 0)
    peak_bits = np.zeros(width if by_channel else 0, np.int64)
    for first in range(0, count, step):
        past = min(first + step, count)
        squares[:], any_kept[:] = 0.0, not by_element
        tokens = 0
        for left in range(0, width, piece):
            right = min(left + piece, width)
            tokens = _gather(bits[first:past], half, keep[first:past], left, right, words, block)
            across = right - left
            x = block[: tokens * across]
            kept = flags[:0]
            if by_element:
                kept = _flatten(keep[first:past, left:right], flags, any_kept)
            finite, total = x, _total(x)
            if by_element or not np.isfinite(total):  # a finite sum has finite terms
                found, bad = _sift(x, kept, sifted)
                finite = sifted[:found]
                total = _total(finite)
                seen[NONFINITE] += bad
            if groups & MOMENTS and len(finite):
                _add_moments(seen, finite, total)
            else:
                seen[COUNT] += len(finite)
            if groups & EXTREMES and len(finite):
                _add_extremes(seen, finite, pair)
            if groups & HISTOGRAM:
                _count(finite, bins)
            if groups & NORMS:
                _add_squares(x, across, squares)
            if by_channel:
                _add_channels(x, across, left, of_channels, peak_bits)
        seen[TOKENS] += np.count_nonzero(any_kept[:tokens])
        if groups & NORMS:
            _add_tokens(seen, squares[:tokens])
    if by_channel:
        seen[CHANNELS] = width
        greatest = peak_bits.view(np.float64)
        for j in range(width):
            sums[j] += of_channels[j]
            peaks[j] = max(peaks[j], greatest[j])
    _hand_over(seen, bins, batch, row)


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """Return an address, an integer, as the pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _add(
    tokens: Any,
    kind: Any,
    count: Any,
    width: Any,
    mask: Any,
    columns: Any,
    groups: Any,
    batch: Any,
    row: Any,
    sums: Any,
    peaks: Any,
) -> None:
    """Add tokens to a row and its channels, all given by their addresses: to pass an array takes longer.

    Args:
        tokens: the address of ``(N, D)``; neither is 0.
        kind: what they are: 0 for bfloat16, 1 for float16, 2 for float32, 3 for float64.
        count: N.
        width: D.
        mask: the address of bool ``(N, 1)`` or ``(N, D)``.
        columns: 1 or D; 0 where all count.
        groups: what to compute, the value of a `Group`.
        batch: the batch's index; inf for none.
        row: the address of ``(ROW_SIZE,)`` float64.
        sums: the address of ``(D,)`` if the channels are asked for.
        peaks: the same.
    """
    keep = carray(_pointer(mask), (count if columns else 0, columns), np.bool_)
    room = width if groups & BY_CHANNEL else 0
    to = carray(_pointer(row), FIRST_BIN + BINS, np.float64)
    to_sums, to_peaks = carray(_pointer(sums), room, np.float64), carray(_pointer(peaks), room, np.float64)
    if kind < 2:
        bits = carray(_pointer(tokens), (count, width), np.int16)
        _add_typed(bits, kind == 1, keep, groups, batch, to, to_sums, to_peaks)
    elif kind == 2:
        words = carray(_pointer(tokens), (count, width), np.int32)
        _add_typed(words, False, keep, groups, batch, to, to_sums, to_peaks)
    else:
        longs = carray(_pointer(tokens), (count, width), np.int64)
        _add_typed(longs, False, keep, groups, batch, to, to_sums, to_peaks)


_WHOLE = types.int64
SIGNATURE = types.void(*[_WHOLE] * 7, types.float64, *[_WHOLE] * 3)
"""The types of the arguments: all that is ever compiled, so that nothing is compiled in a step."""

add = njit(cache=True, **_OPTIONS)(_add)
