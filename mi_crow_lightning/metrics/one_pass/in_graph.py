"""The look at an activation as ``torch.compile`` sees it: whole tensors, no chunks, nothing in place.

The compiler joins the operations to a few passes. Elementwise work is float32 (float64 for float64), made safe as in
the kernel: numbers are divided by a power of two that no element exceeds by much, and moments are taken about a mean.
Sums over a token are float32, sums over tokens float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BINS, MAX_EXPONENT, MIN_EXPONENT
from mi_crow_lightning.metrics.one_pass.in_torch import declared_sums
from mi_crow_lightning.metrics.rows import Row
from mi_crow_lightning.metrics.summary import Group, Summary

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum

SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
"""By its name how a graph measures a further sum, from ``x (N, D)``, float32 (float64 for float64), which is 0 where
``keep (N, D)`` is False, and ``keep``. A sum that is not here is traced as it is declared, in float64."""


class _Format(NamedTuple):
    """The place of the exponent in a floating-point format."""

    integer: torch.dtype  # of the same width
    mantissa: int  # bits below the exponent
    bias: int


_FORMATS = {torch.float32: _Format(torch.int32, 23, 127), torch.float64: _Format(torch.int64, 52, 1023)}
_EXPONENTS = range(MIN_EXPONENT, MAX_EXPONENT + 1)
_LANES = 2**13


def measure_traced(tokens: Tensor, keep: Tensor | None, groups: Group, sums: Sequence[Sum] = ()) -> Summary:
    """Summarise activations.

    Args:
        tokens: ``(N, D)``; neither is 0.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        sums: the further sums.
    """
    x = tokens if tokens.dtype == torch.float64 else tokens.float()
    ieee = _FORMATS[x.dtype]
    valid = x.isfinite() if keep is None else x.isfinite() & keep
    clean = torch.where(valid, x, 0)
    count = valid.sum().double()
    values = {Row.COUNT: count, Row.NONFINITE: _selected(tokens, keep) - count, Row.TOKENS: _tokens(tokens, keep)}
    if Group.EXTREMES in groups:
        values[Row.MINIMUM] = torch.where(valid, x, math.inf).amin().double()
        values[Row.MAXIMUM] = torch.where(valid, x, -math.inf).amax().double()
        values[Row.ZEROS] = (valid & (x == 0)).sum().double()
    channels = torch.zeros(2, 0, dtype=torch.float64, device=x.device)
    if groups & (Group.MOMENTS | Group.TOKENS | Group.CHANNELS):
        exponent = (clean.abs().amax().view(ieee.integer) >> ieee.mantissa).clamp(1, 2 * ieee.bias - 1)
        unit = (exponent << ieee.mantissa).view(x.dtype).double()
        scaled = clean * ((2 * ieee.bias - exponent) << ieee.mantissa).view(x.dtype)
        squares = scaled * scaled
        if Group.MOMENTS in groups:
            values |= _moments(scaled, valid, count, unit)
        if Group.TOKENS in groups:
            norms = squares.sum(1).double().sqrt() * unit
            values |= {Row.NORM_SUM: norms.sum(), Row.NORM_MAX: norms.amax()}
        if Group.CHANNELS in groups:
            channels = torch.stack([squares.sum(0).double() * unit.square(), clean.abs().amax(0).double()])
    bins = _bins(clean, count) if Group.BINS in groups else torch.zeros(BINS, device=x.device)
    row = _row(values, bins, channels)
    return Summary(torch.cat([row, _further(clean, valid, sums)]) if sums else row, channels)


def _further(clean: Tensor, valid: Tensor, sums: Sequence[Sum]) -> Tensor:
    """Return the further sums, ``(S,)``."""
    some = valid.any()
    numbers = [
        torch.where(some, SUMS[one.name](clean, valid).double(), one.merge.empty)
        if one.name in SUMS
        else declared_sums(clean, valid, [one])[0]
        for one in sums
    ]
    return torch.stack(numbers)


def _selected(tokens: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return torch.full((), float(tokens.numel()), dtype=torch.float64, device=tokens.device)
    return keep.sum().double() * (tokens.shape[1] // keep.shape[1])


def _tokens(tokens: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return torch.full((), float(len(tokens)), dtype=torch.float64, device=tokens.device)
    return keep.any(1).sum().double()


def _moments(scaled: Tensor, valid: Tensor, count: Tensor, unit: Tensor) -> dict[Row, Tensor]:
    some = count.clamp(min=1)
    shift = (scaled.sum(1).double().sum() / some).to(scaled.dtype)
    d = torch.where(valid, scaled - shift, 0)
    squares = d * d
    s1, s2, s3, s4 = (part.sum(1).double().sum() for part in (d, squares, squares * d, squares * squares))
    # About the mean: the shift was rounded.
    m = s1 / some
    return {
        Row.MEAN: (shift.double() + m) * unit,
        Row.M2: (s2 - m * s1).clamp(min=0) * unit**2,
        Row.M3: (s3 - m * (3 * s2 - 2 * m * s1)) * unit**3,
        Row.M4: (s4 - m * (4 * s3 - m * (6 * s2 - 3 * m * s1))).clamp(min=0) * unit**4,
    }


def _bins(clean: Tensor, count: Tensor) -> Tensor:
    """Return the histogram's counts; ``count`` is the number of elements that count: zeros stand for the others."""
    if clean.device.type == "cpu":
        positive, negative = _compared(clean), _compared(-clean)
    else:
        positive, negative = _added(clean)
    centre = count - positive.sum() - negative.sum()
    return torch.cat([negative.flip(0), centre[None], positive])


def _compared(x: Tensor) -> Tensor:
    """Count the elements of each exponent by comparing, which a CPU does many at a time."""
    edges = torch.tensor([2.0**e for e in _EXPONENTS], dtype=x.dtype, device=x.device)
    reached = (x[..., None] >= edges).sum((0, 1), dtype=torch.int32)  # a compiled graph holds no (N, D, 32)
    return torch.cat([reached[:-1] - reached[1:], reached[-1:]])


def _added(x: Tensor) -> tuple[Tensor, Tensor]:
    """Count the positive and the negative elements of each exponent by atomic additions."""
    ieee, side = _FORMATS[x.dtype], len(_EXPONENTS)
    # Number 0 is for elements below the first exponent, then the positive ones follow, and the negative ones.
    place = ((x.abs().view(ieee.integer) >> ieee.mantissa) - (ieee.bias + MIN_EXPONENT - 1)).clamp(0, side)
    key = torch.where((x < 0) & (place > 0), place + side, place).flatten().long()
    # With one counter for each bin all threads would queue for the same few.
    key = key + (2 * side + 1) * (torch.arange(len(key), device=key.device) % _LANES)
    counters = torch.zeros(_LANES * (2 * side + 1), dtype=torch.int32, device=key.device)
    counts = counters.scatter_add(0, key, torch.ones_like(key, dtype=torch.int32)).view(_LANES, -1).sum(0)
    return counts[1 : side + 1], counts[side + 1 :]


def _row(values: dict[Row, Tensor], bins: Tensor, channels: Tensor) -> Tensor:
    """Return an empty row with these numbers filled in."""
    blank = {Row.MINIMUM: math.inf, Row.BAD_BATCH: math.inf, Row.MAXIMUM: -math.inf, Row.CHANNELS: channels.shape[1]}
    head = [
        values[field] if field in values else bins.new_full((), blank.get(field, 0), dtype=torch.float64)
        for field in Row
        if field < Row.BINS
    ]
    return torch.cat([torch.stack(head), bins.double()])
