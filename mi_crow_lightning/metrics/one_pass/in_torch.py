"""The form for eager torch, on any device: one chunk of an activation at a time.

Elements to leave out are multiplied away: indexing makes a shape that depends on the data, and that would wait for
the device. All sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BINS, CENTRE, count_bins
from mi_crow_lightning.metrics.rows import Row
from mi_crow_lightning.metrics.summary import Group, Summary

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum


class _Chunk(NamedTuple):
    """Elements, with numbers for which of them count: arithmetic on booleans is several times slower."""

    x: Tensor  # (N, D), float32 or float64, zero where it does not count
    counts: Tensor  # (N, D), ones and zeros
    tokens: Tensor  # number of selected tokens, float64
    selected: Tensor  # number of selected elements, float64
    n: Tensor  # number of selected elements that are finite, float64


def measure_in_torch(x: Tensor, keep: Tensor | None, groups: Group, sums: Sequence[Sum] = ()) -> Summary:
    """Summarise a chunk of tokens.

    Args:
        x: ``(N, D)``, float32 or float64.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        sums: the further sums.
    """
    chunk = _chunk(x, keep)
    values = {Row.COUNT: chunk.n, Row.NONFINITE: chunk.selected - chunk.n, Row.TOKENS: chunk.tokens}
    channels = torch.zeros(2, 0, dtype=torch.float64, device=x.device)
    if Group.EXTREMES in groups:
        values |= _extremes(chunk)
    bins = _bins(chunk) if Group.BINS in groups else None
    if groups & (Group.MOMENTS | Group.TOKENS | Group.CHANNELS):
        wide = chunk.x.to(torch.float64, copy=True)
        squares = wide * wide  # (N, D)
        if Group.TOKENS in groups:
            norms = squares.sum(1).sqrt()
            values |= {Row.NORM_SUM: norms.sum(), Row.NORM_MAX: norms.amax()}
        if Group.CHANNELS in groups:
            channels = torch.stack([squares.sum(0), _peaks(chunk.x)])
        if Group.MOMENTS in groups:
            values |= _moments(chunk, wide, squares)
    row = _row(values, bins, channels)
    return Summary(torch.cat([row, declared_sums(chunk.x, chunk.counts.bool(), sums)]) if sums else row, channels)


def sums_in_torch(x: Tensor, keep: Tensor | None, sums: Sequence[Sum]) -> Tensor:
    """Return the sums ``(S,)`` of a chunk of tokens, each as it is declared; for the arguments see above."""
    chunk = _chunk(x, keep)
    return declared_sums(chunk.x, chunk.counts.bool(), sums)


def declared_sums(x: Tensor, keep: Tensor, sums: Sequence[Sum]) -> Tensor:
    """Return sums ``(S,)`` float64, each as it is declared.

    Args:
        x: ``(N, D)``, 0 where ``keep`` is False.
        keep: bool ``(N, D)``.
        sums: the sums, at least one.

    Raises:
        ValueError: a sum is not one number.
    """
    wide = x.to(torch.float64, copy=True)  # a copy: x may be the model's own activation
    some = keep.any()
    return torch.stack([torch.where(some, _declared(one, wide, keep), one.merge.empty) for one in sums])


def _declared(one: Sum, x: Tensor, keep: Tensor) -> Tensor:
    number = one.of(x, keep)
    if number.shape != ():
        raise ValueError(
            f"the sum {one.name!r} has the shape {tuple(number.shape)}: make it one number, of the shape (), for "
            f"tokens of the shape {tuple(x.shape)}"
        )
    return number.double()


def _chunk(x: Tensor, mask: Tensor | None) -> _Chunk:
    """Return the chunk with zeros for what is left out."""
    clean = x.nan_to_num(0.0, 0.0, 0.0)
    counts = (x - x).add_(1.0).nan_to_num_(0.0)  # nan where x is nan or infinite
    if mask is None:
        tokens = torch.full((), float(len(x)), dtype=torch.float64, device=x.device)
        selected = tokens * x.shape[1]
    else:
        keep = mask.to(x.dtype)
        clean, counts = clean.mul_(keep), counts.mul_(keep)
        tokens = keep.amax(1).sum(dtype=torch.float64)
        selected = keep.sum(dtype=torch.float64) * (x.shape[1] // keep.shape[1])
    return _Chunk(clean, counts, tokens, selected, counts.sum(dtype=torch.float64))


def _moments(chunk: _Chunk, wide: Tensor, work: Tensor) -> dict[Row, Tensor]:
    """Return the moments. ``wide``, the elements in float64, and ``work`` are overwritten: fresh memory is slow."""
    mean = wide.sum() / chunk.n.clamp(min=1)
    d = wide.sub_(mean)
    d.mul_(chunk.counts)
    squares = torch.mul(d, d, out=work)
    m2, (d, squares) = squares.sum(), (d.flatten(), squares.flatten())
    return {Row.MEAN: mean, Row.M2: m2, Row.M3: squares.dot(d), Row.M4: squares.dot(squares)}


def _extremes(chunk: _Chunk) -> dict[Row, Tensor]:
    zeros = chunk.n - torch.count_nonzero(chunk.x)
    away = (1 - chunk.counts) * torch.finfo(chunk.x.dtype).max
    low = torch.where(chunk.n > 0, (chunk.x + away).amin().double(), math.inf)
    high = torch.where(chunk.n > 0, (chunk.x - away).amax().double(), -math.inf)
    return {Row.MINIMUM: low, Row.MAXIMUM: high, Row.ZEROS: zeros}


def _peaks(x: Tensor) -> Tensor:
    """Return the largest absolute value of each channel, ``(D,)``."""
    return torch.maximum(x.amax(0), -x.amin(0)).double()


def _bins(chunk: _Chunk) -> Tensor:
    bins = count_bins(chunk.x)
    bins[CENTRE] -= chunk.x.numel() - chunk.n  # the zeros that stand for what was left out
    return bins


def _row(values: dict[Row, Tensor], bins: Tensor | None, channels: Tensor) -> Tensor:
    """Return an empty row with these numbers filled in."""
    empty = {Row.MINIMUM: math.inf, Row.BAD_BATCH: math.inf, Row.MAXIMUM: -math.inf, Row.CHANNELS: channels.shape[1]}
    head = [
        values[field] if field in values else channels.new_full((), empty.get(field, 0.0))
        for field in Row
        if field < Row.BINS
    ]
    return torch.cat([torch.stack(head), channels.new_zeros(BINS) if bins is None else bins])
