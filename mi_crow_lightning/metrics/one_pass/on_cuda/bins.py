"""Counting bins inside a kernel, with a few logical operations an element and no atomic addition.

An element is one bit, at the place of its bin, in a word of 32. Many such words are added with carry-save adders, 32
bit places at a time (the method of Harley and Seal, in H. S. Warren, "Hacker's Delight", 2nd edition, section 5-1):
*plane* ``p`` holds bit ``p`` of each of the 32 counts. A thread keeps its own planes, and they become counts once,
when all has been seen.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mi_crow_lightning.metrics.log2_bins import MAX_EXPONENT, MIN_EXPONENT

PLACES = tl.constexpr(32)  # in a word: number 0 for the centre bin, then an exponent each, up to 2**13
TOP = tl.constexpr(2.0**MAX_EXPONENT)
TOP_BITS = tl.constexpr((127 + MAX_EXPONENT) << 23)  # of the same as a float32
_BELOW = tl.constexpr(2.0 ** (MIN_EXPONENT - 1))
_BELOW_EXPONENT = tl.constexpr(127 + MIN_EXPONENT - 1)
_LOG2_PIECES = tl.constexpr(5)


@triton.jit
def words(v):
    """Return the word of each element, all less than ``2**13``, and the same but 0 where it is not negative."""
    exponent = tl.maximum(tl.abs(v), _BELOW).to(tl.int32, bitcast=True) >> 23
    word = 1 << (exponent - _BELOW_EXPONENT)
    return word, tl.where(v < 0, word, 0)


@triton.jit
def no_counts(ROWS: tl.constexpr, COLS: tl.constexpr, PLANES: tl.constexpr):
    """Return empty planes, for counts below ``2**PLANES``."""
    planes = ()
    for _ in tl.static_range(PLANES):
        planes = planes + (tl.zeros([ROWS, COLS], tl.int32),)
    return planes


@triton.jit
def add(planes, tile, REP: tl.constexpr, VEC: tl.constexpr):
    """Add the words of a tile ``(R, C)``: ``REP`` rows and ``VEC`` columns of it to each count."""
    carries = _pieces(tile, REP, VEC)
    sums = ()
    for level in tl.static_range(len(planes)):
        total = planes[level]
        over = ()
        for i in tl.static_range(0, len(carries), 2):
            if i + 1 < len(carries):
                over = over + ((total & carries[i]) | (carries[i + 1] & (total ^ carries[i])),)
                total = total ^ carries[i] ^ carries[i + 1]
            else:
                over = over + (total & carries[i],)
                total = total ^ carries[i]
        sums = sums + (total,)
        carries = over
    return sums


@triton.jit
def _pieces(tile, REP: tl.constexpr, VEC: tl.constexpr):
    """Return one thread's part of a tile as single elements: moves nothing where a thread holds such a piece."""
    R: tl.constexpr = tile.shape[0] // REP
    C: tl.constexpr = tile.shape[1] // VEC
    pieces = (tl.reshape(tl.permute(tl.reshape(tile, [REP, R, C, VEC]), [1, 2, 0, 3]), [R, C, REP * VEC]),)
    for _ in tl.static_range(_LOG2_PIECES):
        halves = ()
        for i in tl.static_range(len(pieces)):
            left, right = tl.split(tl.reshape(pieces[i], [R, C, pieces[i].shape[2] // 2, 2]))
            halves = halves + (left, right)
        pieces = halves
    single = ()
    for i in tl.static_range(len(pieces)):
        single = single + (tl.reshape(pieces[i], [R, C]),)
    return single


@triton.jit
def counts(planes):
    """Return the counts, ``(32,)`` int32."""
    place = tl.arange(0, PLACES)
    total = tl.zeros([planes[0].shape[0], planes[0].shape[1], PLACES], tl.int32)
    for p in tl.static_range(len(planes)):
        total += ((planes[p][:, :, None] >> place) & 1) << p
    return tl.sum(tl.sum(total, 0), 0)
