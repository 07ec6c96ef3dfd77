"""The second kernel: joins the sums of the first kernel's programs, in float64 and always in the same order.

Program 0 makes the row, the others make the channels. With ``ADD`` they are added to the numbers there, else they
replace them. The formulas and their sources are in ``rows.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mi_crow_lightning.metrics import log2_bins
from mi_crow_lightning.metrics.one_pass.on_cuda import bins, look
from mi_crow_lightning.metrics.rows import Row

_COUNT = tl.constexpr(int(Row.COUNT))
_MINIMUM = tl.constexpr(int(Row.MINIMUM))
_BAD_BATCH = tl.constexpr(int(Row.BAD_BATCH))
_MAXIMUM = tl.constexpr(int(Row.MAXIMUM))
_NORM_MAX = tl.constexpr(int(Row.NORM_MAX))
_CHANNELS = tl.constexpr(int(Row.CHANNELS))
_MIXED = tl.constexpr(int(Row.MIXED))
_ZEROS = tl.constexpr(int(Row.ZEROS))
_NONFINITE = tl.constexpr(int(Row.NONFINITE))
_TOKENS = tl.constexpr(int(Row.TOKENS))
_NORM_SUM = tl.constexpr(int(Row.NORM_SUM))
_BINS = tl.constexpr(int(Row.BINS))
_CENTRE = tl.constexpr(log2_bins.CENTRE)


@triton.jit(
    do_not_specialize=["batch", "programs"],
    do_not_specialize_on_alignment=["channel_sums", "channel_peaks"],  # they lie where the layers before them end
)
def finish(
    row, channel_sums, channel_peaks, batch, floats, ints, sums, peaks, units, programs, width, tile_width,
    ADD: tl.constexpr, MOMENTS: tl.constexpr, EXTREMES: tl.constexpr, NORMS: tl.constexpr, CHANNELS: tl.constexpr,
    BINS: tl.constexpr, MANY: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Make the row ``(ROW_SIZE,)`` and the numbers of the channels, ``(D,)`` each; an unknown ``batch`` is -1."""
    if tl.program_id(0) == 0:
        _moments(row, floats, ints, programs, ADD, MOMENTS, MANY)
        _rest(row, batch, floats, ints, programs, ADD, EXTREMES, NORMS, MANY)
        _bins(row + _BINS, ints, programs, ADD, BINS, MANY)
        if not ADD:
            tl.store(row + _MIXED, 0.0)
            tl.store(row + _CHANNELS, (width * CHANNELS).to(tl.float64))
    elif CHANNELS:
        _channels(channel_sums, channel_peaks, ints, sums, peaks, units, programs, width, tile_width, ADD, MANY, WIDE)


@triton.jit
def _moments(row, floats, ints, programs, ADD: tl.constexpr, MOMENTS: tl.constexpr, MANY: tl.constexpr):
    """Write count, mean, M2, M3 and M4."""
    whole = ()
    for k in tl.static_range(5):
        whole = whole + (_before(row + _COUNT + k, 0.0, ADD),)
    for start in range(0, programs, MANY):
        whole = _joined(whole, _union(_of_programs(floats, ints, start, programs, MOMENTS, MANY)))
    for k in tl.static_range(5):
        tl.store(row + _COUNT + k, whole[k])


@triton.jit
def _of_programs(floats, ints, start, programs, MOMENTS: tl.constexpr, MANY: tl.constexpr):
    """Return each program's count, mean, M2, M3 and M4."""
    n = _load(ints + look.FINITE, start, programs, look.INTS, MANY)
    if not MOMENTS:
        return n, n * 0, n * 0, n * 0, n * 0
    some = tl.maximum(n, 1)
    unit = _load(floats + look.UNIT, start, programs, look.FLOATS, MANY)
    shift = _load(floats + look.SHIFT, start, programs, look.FLOATS, MANY)
    d = _load(floats + look.S1, start, programs, look.FLOATS, MANY) / some
    s2 = _load(floats + look.S2, start, programs, look.FLOATS, MANY)
    s3 = _load(floats + look.S3, start, programs, look.FLOATS, MANY)
    s4 = _load(floats + look.S4, start, programs, look.FLOATS, MANY)
    u2 = unit * unit
    m2 = tl.maximum(s2 - n * d * d, 0) * u2
    m3 = (s3 - d * (3 * s2 - 2 * n * d * d)) * u2 * unit
    m4 = tl.maximum(s4 - d * (4 * s3 - d * (6 * s2 - 3 * n * d * d)), 0) * u2 * u2
    return n, (shift + d) * unit, m2, m3, m4


@triton.jit
def _union(parts):
    """Return the moments of all programs together, about one of their means, then moved: equal means stay exact."""
    n, means, m2, m3, m4 = parts
    highest = tl.max(tl.where(n > 0, means, float("-inf")), 0)
    count = tl.sum(n, 0)
    highest = tl.where(count > 0, highest, 0.0)
    mean = highest + tl.sum(n * (means - highest), 0) / tl.maximum(count, 1)
    d = means - mean
    nd2 = n * d * d
    return (
        count,
        mean,
        tl.sum(m2 + nd2, 0),
        tl.sum(m3 + d * (3 * m2 + nd2), 0),
        tl.sum(m4 + d * (4 * m3 + d * (6 * m2 + nd2)), 0),
    )


@triton.jit
def _joined(a, b):
    """Return the moments of two sets together."""
    n = a[0] + b[0]
    share = b[0] / tl.maximum(n, 1)
    mean = a[1] + share * (b[1] - a[1])
    p = a[1] - mean
    q = b[1] - mean
    return (
        n,
        mean,
        a[2] + b[2] + a[0] * p * p + b[0] * q * q,
        a[3] + b[3] + p * (3 * a[2] + a[0] * p * p) + q * (3 * b[2] + b[0] * q * q),
        a[4] + b[4] + p * (4 * a[3] + p * (6 * a[2] + a[0] * p * p)) + q * (4 * b[3] + q * (6 * b[2] + b[0] * q * q)),
    )


@triton.jit
def _rest(
    row, batch, floats, ints, programs, ADD: tl.constexpr, EXTREMES: tl.constexpr, NORMS: tl.constexpr,
    MANY: tl.constexpr,
):  # fmt: skip
    low = _before(row + _MINIMUM, float("inf"), ADD)
    high = _before(row + _MAXIMUM, float("-inf"), ADD)
    zeros = _before(row + _ZEROS, 0.0, ADD)
    tokens = _before(row + _TOKENS, 0.0, ADD)
    norm_sum = _before(row + _NORM_SUM, 0.0, ADD)
    norm_max = _before(row + _NORM_MAX, 0.0, ADD)
    bad = tl.zeros([], tl.float64)
    for start in range(0, programs, MANY):
        n = _load(ints + look.FINITE, start, programs, look.INTS, MANY)
        bad += tl.sum(_load(ints + look.SELECTED, start, programs, look.INTS, MANY) - n, 0)
        tokens += tl.sum(_load(ints + look.TOKENS, start, programs, look.INTS, MANY), 0)
        if EXTREMES:
            zeros += tl.sum(_load(ints + look.ZEROS, start, programs, look.INTS, MANY), 0)
            lowest = _load(floats + look.LOW, start, programs, look.FLOATS, MANY)
            highest = _load(floats + look.HIGH, start, programs, look.FLOATS, MANY)
            low = tl.minimum(low, tl.min(tl.where(n > 0, lowest, float("inf")), 0))
            high = tl.maximum(high, tl.max(tl.where(n > 0, highest, float("-inf")), 0))
        if NORMS:
            unit = _load(floats + look.UNIT, start, programs, look.FLOATS, MANY)
            norm_sum += tl.sum(unit * _load(floats + look.NORM_SUM, start, programs, look.FLOATS, MANY), 0)
            largest = unit * _load(floats + look.NORM_MAX, start, programs, look.FLOATS, MANY)
            norm_max = tl.maximum(norm_max, tl.max(largest, 0))
    first_bad = tl.where((bad > 0) & (batch >= 0), batch.to(tl.float64), float("inf"))
    tl.store(row + _MINIMUM, low)
    tl.store(row + _BAD_BATCH, tl.minimum(_before(row + _BAD_BATCH, float("inf"), ADD), first_bad))
    tl.store(row + _MAXIMUM, high)
    tl.store(row + _NORM_MAX, norm_max)
    tl.store(row + _ZEROS, zeros)
    tl.store(row + _NONFINITE, _before(row + _NONFINITE, 0.0, ADD) + bad)
    tl.store(row + _TOKENS, tokens)
    tl.store(row + _NORM_SUM, norm_sum)


@triton.jit
def _bins(counts, ints, programs, ADD: tl.constexpr, BINS: tl.constexpr, MANY: tl.constexpr):
    place = tl.arange(0, bins.PLACES)
    both = tl.zeros([bins.PLACES], tl.int64)
    negative = tl.zeros([bins.PLACES], tl.int64)
    top = tl.zeros([], tl.float64)
    top_negative = tl.zeros([], tl.float64)
    if BINS:
        for start in range(0, programs, MANY):
            program = start + tl.arange(0, MANY)
            at = ints + program.to(tl.int64)[:, None] * look.INTS + place[None, :]
            mask = (program < programs)[:, None] & (place >= 0)[None, :]
            both += tl.sum(tl.load(at + look.BOTH, mask=mask, other=0).to(tl.int64), 0)
            negative += tl.sum(tl.load(at + look.NEGATIVE, mask=mask, other=0).to(tl.int64), 0)
            top += tl.sum(_load(ints + look.TOP_BOTH, start, programs, look.INTS, MANY), 0)
            top_negative += tl.sum(_load(ints + look.TOP_NEGATIVE, start, programs, look.INTS, MANY), 0)
    # Place 0 is the centre bin, of both signs.
    _put(counts + _CENTRE - place, negative, place > 0, ADD)
    _put(counts + _CENTRE + place, both - tl.where(place > 0, negative, 0), place >= 0, ADD)
    _put(counts, top_negative, True, ADD)
    _put(counts + 2 * _CENTRE, top - top_negative, True, ADD)


@triton.jit
def _channels(
    channel_sums, channel_peaks, ints, sums, peaks, units, programs, width, tile_width, ADD: tl.constexpr,
    MANY: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    first = (tl.program_id(0) - 1) * WIDE
    channel = first + tl.arange(0, WIDE)
    total = tl.zeros([WIDE], tl.float64)
    peak = tl.zeros([WIDE], tl.float32)
    for start in range(0, programs, MANY):
        program = start + tl.arange(0, MANY)
        wrote = _load(ints + look.FINITE, start, programs, look.INTS, MANY) > 0  # else there may be no sums
        mask = wrote[:, None] & (channel < width)[None, :]
        at = program.to(tl.int64)[:, None] * width + channel[None, :]
        unit_at = units + program.to(tl.int64) * tl.cdiv(width, tile_width) + first // tile_width
        unit = tl.load(unit_at, mask=wrote, other=0).to(tl.float64)
        total += tl.sum(tl.load(sums + at, mask=mask, other=0).to(tl.float64) * (unit * unit)[:, None], 0)
        peak = tl.maximum(peak, tl.max(tl.load(peaks + at, mask=mask, other=0), 0))
    here = channel < width
    _put(channel_sums + channel, total, here, ADD)
    if ADD:
        peak = tl.maximum(peak, tl.load(channel_peaks + channel, mask=here, other=0).to(tl.float32))
    tl.store(channel_peaks + channel, peak.to(tl.float64), mask=here)


@triton.jit
def _load(at, start, programs, STRIDE: tl.constexpr, MANY: tl.constexpr):
    """Return a number of each program, float64, and 0 beyond the last program."""
    program = start + tl.arange(0, MANY)
    return tl.load(at + program.to(tl.int64) * STRIDE, mask=program < programs, other=0).to(tl.float64)


@triton.jit
def _before(at, NOTHING: tl.constexpr, ADD: tl.constexpr):
    if ADD:
        return tl.load(at)
    else:
        return tl.full([], NOTHING, tl.float64)


@triton.jit
def _put(at, values, mask, ADD: tl.constexpr):
    values = values.to(tl.float64)
    if ADD:
        values += tl.load(at, mask=mask, other=0)
    tl.store(at, values, mask=mask)
