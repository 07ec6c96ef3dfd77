"""The first kernel: reads the activation, once, and writes what each program has seen of it.

A program has ``ROWS`` tokens and goes over their channels, ``COLS`` at a time. It keeps its sums in each thread's own
registers; threads meet once a tile for the channels, and once at the end for all else. Everything is float32, made safe
by two things: numbers are divided by a power of two, the *unit*, which no element so far exceeds by much, and
moments are taken about a *shift*, the mean of the first tile. Both are written down with the sums, and the second
kernel joins the programs in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mi_crow_lightning.metrics.one_pass.on_cuda import bins

# Of each program, float32.
SHIFT = tl.constexpr(0)  # divided by the unit, as are the sums below
UNIT = tl.constexpr(1)
S1 = tl.constexpr(2)  # sum of (x - shift), and of its powers
S2 = tl.constexpr(3)
S3 = tl.constexpr(4)
S4 = tl.constexpr(5)
LOW = tl.constexpr(6)
HIGH = tl.constexpr(7)
NORM_SUM = tl.constexpr(8)
NORM_MAX = tl.constexpr(9)
FLOATS = tl.constexpr(10)
# Of each program, int32.
FINITE = tl.constexpr(0)
SELECTED = tl.constexpr(1)
TOKENS = tl.constexpr(2)
ZEROS = tl.constexpr(3)
TOP_BOTH = tl.constexpr(4)  # elements in the outermost bins, of both signs together,
TOP_NEGATIVE = tl.constexpr(5)  # and the negative ones among them
BOTH = tl.constexpr(6)  # the other bins
NEGATIVE = tl.constexpr(BOTH.value + bins.PLACES.value)
INTS = tl.constexpr(NEGATIVE.value + bins.PLACES.value)

ALL = tl.constexpr(0)  # which elements count: all,
BY_TOKEN = tl.constexpr(1)  # those of some tokens,
BY_ELEMENT = tl.constexpr(2)  # or each its own

INFINITY = tl.constexpr(0x7F800000)  # as bits; those of nan are larger


@triton.jit(do_not_specialize=["n_tokens"])
def look(
    x, keep, floats, ints, sums, peaks, units,
    n_tokens, width, x_row, x_col, keep_row, keep_col,
    MASK: tl.constexpr, MOMENTS: tl.constexpr, EXTREMES: tl.constexpr, NORMS: tl.constexpr, CHANNELS: tl.constexpr,
    BINS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, REP: tl.constexpr, VEC: tl.constexpr,
    PLANES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    rows = program * ROWS + tl.arange(0, ROWS)
    kept_rows = rows < n_tokens
    if MASK == BY_TOKEN:
        kept_rows = tl.load(keep + rows * keep_row, mask=kept_rows, other=0).to(tl.int1)
    tokens = kept_rows.to(tl.int32)
    count = tl.sum(tokens)
    if MASK == BY_ELEMENT:
        tokens = tl.zeros([ROWS], tl.int32)
    tiles = tl.cdiv(width, COLS)
    used = tl.where(count > 0, tiles, 0)  # of padding alone nothing is read

    finite = 0
    selected = 0
    top = 0
    top_negative = 0
    exponent = 1  # of the unit, as it stands in float32's bits
    shift = 0.0
    own = _nothing(ROWS // REP, COLS // VEC)
    squares = tl.zeros([ROWS, COLS // VEC], tl.float32)
    counts = bins.no_counts(ROWS // REP, COLS // VEC, PLANES)
    negative = bins.no_counts(ROWS // REP, COLS // VEC, PLANES)

    for tile in range(used):
        cols = tile * COLS + tl.arange(0, COLS)
        kept = kept_rows[:, None] & (cols < width)[None, :]
        if MASK == BY_ELEMENT:
            kept = tl.load(keep + rows[:, None] * keep_row + cols[None, :] * keep_col, mask=kept, other=0).to(tl.int1)
            tokens = tl.maximum(tokens, tl.max(kept.to(tl.int32), 1))
        v = tl.load(x + rows[:, None] * x_row + cols.to(tl.int64)[None, :] * x_col, mask=kept, other=0.0)
        v = _float32(v)
        magnitude = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # in the order of the absolute values
        peak = tl.max(magnitude, 0)
        largest = tl.max(peak)

        seen = finite
        whole = (count == ROWS) & ((tile + 1) * COLS <= width) & (largest < INFINITY)
        if MASK == BY_ELEMENT:
            whole = False
        if whole:
            finite += ROWS * COLS
            selected += ROWS * COLS
        else:
            valid = kept & (magnitude < INFINITY)
            finite += tl.sum(valid.to(tl.int32))
            selected += tl.sum(kept.to(tl.int32))
            v = tl.where(valid, v, float("nan"))  # marks what is left out, until the moments are done
            peak = tl.max(tl.where(valid, magnitude, 0), 0)
            largest = tl.max(peak)

        before = exponent
        exponent = tl.minimum(tl.maximum(exponent, largest >> 23), 253)
        inverse = _power(254 - exponent)
        shrunk = _power(before) * inverse  # at most 1
        shift *= shrunk
        if MOMENTS and seen == 0:
            shift = tl.sum(tl.where(v == v, v * inverse, 0.0)) / tl.maximum(finite, 1)
        if whole:
            own = _add(own, v, inverse, shift, shrunk, True, MOMENTS, EXTREMES, REP, VEC)
        else:
            own = _add(own, v, inverse, shift, shrunk, False, MOMENTS, EXTREMES, REP, VEC)
            v = tl.where(v == v, v, 0.0)
        if NORMS or CHANNELS:
            square = (v * inverse) * (v * inverse)
            if NORMS:
                squares = squares * (shrunk * shrunk)
                squares += tl.sum(tl.reshape(square, [ROWS, COLS // VEC, VEC]), 2)
            if CHANNELS:
                tl.store(sums + program * width + cols, tl.sum(square, 0), mask=cols < width)
                tl.store(peaks + program * width + cols, peak.to(tl.float32, bitcast=True), mask=cols < width)
                tl.store(units + program * tiles + tile, _power(exponent))
        if BINS:
            if largest >= bins.TOP_BITS:
                above = tl.abs(v) >= bins.TOP
                top += tl.sum(above.to(tl.int32))
                top_negative += tl.sum((above & (v < 0)).to(tl.int32))
                v = tl.where(above, 0.0, v)
            word, negative_word = bins.words(v)
            counts = bins.add(counts, word, REP, VEC)
            negative = bins.add(negative, negative_word, REP, VEC)

    at = ints + program * INTS
    tl.store(at + FINITE, finite)
    tl.store(at + SELECTED, selected)
    tl.store(at + TOKENS, tl.sum(tokens))
    if BINS:
        place = tl.arange(0, bins.PLACES)
        # Zeros stand in the centre bin for what was left out and for what is in the outermost ones.
        extra = tl.where(place == 0, used * (ROWS * COLS) - finite + top, 0)
        tl.store(at + BOTH + place, bins.counts(counts) - extra)
        tl.store(at + NEGATIVE + place, bins.counts(negative))
        tl.store(at + TOP_BOTH, top)
        tl.store(at + TOP_NEGATIVE, top_negative)
    if EXTREMES:
        tl.store(at + ZEROS, finite - tl.sum(own[6]))
    _write_floats(floats + program * FLOATS, own, squares, shift, _power(exponent), MOMENTS, EXTREMES, NORMS)


@triton.jit
def _write_floats(at, own, squares, shift, unit, MOMENTS: tl.constexpr, EXTREMES: tl.constexpr, NORMS: tl.constexpr):
    tl.store(at + UNIT, unit)
    if MOMENTS:
        tl.store(at + SHIFT, shift)
        for k in tl.static_range(4):
            tl.store(at + S1 + k, tl.sum(own[k]))
    if EXTREMES:
        tl.store(at + LOW, tl.min(own[4]))
        tl.store(at + HIGH, tl.max(own[5]))
    if NORMS:
        norms = tl.sqrt_rn(tl.sum(squares, 1))
        tl.store(at + NORM_SUM, tl.sum(norms))
        tl.store(at + NORM_MAX, tl.max(norms))


@triton.jit
def _power(exponent):
    """Return the power of two with this exponent in its bits."""
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _float32(v):
    if v.dtype == tl.bfloat16:  # its bits are the upper half; Triton's interpreter converts subnormal ones wrongly
        return (v.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return v.to(tl.float32)


@triton.jit
def _nothing(ROWS: tl.constexpr, COLS: tl.constexpr):
    zeros = tl.zeros([ROWS, COLS], tl.float32)
    none = tl.zeros([ROWS, COLS], tl.int32)
    return zeros, zeros, zeros, zeros, zeros + float("inf"), zeros - float("inf"), none


@triton.jit
def _add(
    own, v, inverse, shift, shrunk, WHOLE: tl.constexpr, MOMENTS: tl.constexpr, EXTREMES: tl.constexpr,
    REP: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Add a tile to a thread's own sums, minimum, maximum and number of elements that are not zero."""
    s1, s2, s3, s4, low, high, nonzero = own
    if MOMENTS:
        d = v * inverse - shift
        if not WHOLE:
            d = tl.where(v == v, d, 0.0)
        d2 = d * d
        power = shrunk * shrunk
        s1 = s1 * shrunk + _sum(d, REP, VEC)
        s2 = s2 * power + _sum(d2, REP, VEC)
        s3 = s3 * (power * shrunk) + _sum(d2 * d, REP, VEC)
        s4 = s4 * (power * power) + _sum(d2 * d2, REP, VEC)
    if EXTREMES:
        lowest = v
        highest = v
        unlike = (v != 0).to(tl.int32)
        if not WHOLE:
            lowest = tl.where(v == v, v, float("inf"))
            highest = tl.where(v == v, v, float("-inf"))
            unlike = tl.where(v == v, unlike, 0)
        low = tl.minimum(low, tl.min(tl.min(_by_thread(lowest, REP, VEC), 3), 0))
        high = tl.maximum(high, tl.max(tl.max(_by_thread(highest, REP, VEC), 3), 0))
        nonzero += _sum(unlike, REP, VEC)
    return s1, s2, s3, s4, low, high, nonzero


@triton.jit
def _sum(tile, REP: tl.constexpr, VEC: tl.constexpr):
    return tl.sum(tl.sum(_by_thread(tile, REP, VEC), 3), 0)


@triton.jit
def _by_thread(tile, REP: tl.constexpr, VEC: tl.constexpr):
    return tl.reshape(tile, [REP, tile.shape[0] // REP, tile.shape[1] // VEC, VEC])
