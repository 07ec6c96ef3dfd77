"""Rows: the sufficient statistics of a set of elements as a fixed number of float64, and how they merge.

A row is ``[count, mean, M2, minimum, maximum, zeros, nonfinite, 65 bin counts]`` (:class:`Row`). Merging
needs nothing but the two rows, so chunks, passes, micro-batches and ranks can be summarised apart and joined
in any order.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BINS


class Row(IntEnum):
    """What stands where in a row; the bin counts follow from ``Row.BINS`` on."""

    COUNT = 0
    MEAN = 1
    M2 = 2  # sum of squared deviations from the mean
    MINIMUM = 3
    MAXIMUM = 4
    ZEROS = 5
    NONFINITE = 6
    BINS = 7


ROW_SIZE = Row.BINS + BINS


def empty_rows(n: int, device: torch.device | str | None = None) -> Tensor:
    """Make ``n`` rows that have seen nothing: the neutral element of :func:`merge`.

    Args:
        n: number of rows, one a layer.
        device: where to make them; None is torch's default device.

    Returns:
        ``(n, ROW_SIZE)`` float64: zeros, with minimum ``inf`` and maximum ``-inf``.

    Example:
        >>> empty_rows(2)[:, Row.MINIMUM]
        tensor([inf, inf], dtype=torch.float64)
    """
    rows = torch.zeros(n, ROW_SIZE, dtype=torch.float64, device=device)
    rows[:, Row.MINIMUM] = math.inf
    rows[:, Row.MAXIMUM] = -math.inf
    return rows


@torch.no_grad()
def merge(a: Tensor, b: Tensor) -> Tensor:
    """Join the summaries of two disjoint sets of elements into that of their union.

    ``delta = mean_b - mean_a``, ``mean = mean_a + delta * n_b / n`` and ``M2 = M2_a + M2_b + delta**2 * n_a *
    n_b / n`` (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance: analysis and
    recommendations", The American Statistician 37(3)); counts add. Associative and commutative within
    rounding; rows of count 0 change nothing.

    Args:
        a: ``(..., ROW_SIZE)`` rows.
        b: rows of the same shape.

    Returns:
        ``(..., ROW_SIZE)``, a new tensor.

    Raises:
        ValueError: the shapes differ, or the last dimension is not ``ROW_SIZE``.

    Example:
        >>> from mi_crow_lightning.metrics.activation import summarize
        >>> merged = merge(summarize(torch.tensor([1.0, 2.0])), summarize(torch.tensor([6.0])))
        >>> merged[Row.MEAN].item(), merged[Row.M2].item()
        (3.0, 14.0)
    """
    if a.shape != b.shape:
        raise ValueError(f"rows of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be merged")
    check_rows(a)
    out = a + b
    share = b[..., Row.COUNT] / out[..., Row.COUNT].clamp(min=1)
    delta = b[..., Row.MEAN] - a[..., Row.MEAN]
    between = delta * (delta * a[..., Row.COUNT] * share)  # not delta**2 first: inf * 0 would be nan
    out[..., Row.MEAN] = a[..., Row.MEAN] + delta * share
    out[..., Row.M2] += between
    out[..., Row.MINIMUM] = torch.minimum(a[..., Row.MINIMUM], b[..., Row.MINIMUM])
    out[..., Row.MAXIMUM] = torch.maximum(a[..., Row.MAXIMUM], b[..., Row.MAXIMUM])
    return out


def merge_all(stacked: Tensor) -> Tensor:
    """Merge over the first dimension, pairwise, so ``R`` summaries take ``log2(R)`` calls of :func:`merge`.

    Args:
        stacked: ``(R, ..., ROW_SIZE)``, for example the rows of ``R`` ranks.

    Returns:
        ``(..., ROW_SIZE)``.

    Raises:
        ValueError: there is nothing to merge, or the last dimension is not ``ROW_SIZE``.

    Example:
        >>> from mi_crow_lightning.metrics.activation import summarize
        >>> merge_all(torch.stack([summarize(torch.full((2,), v)) for v in (1.0, 2.0, 6.0)]))[Row.MEAN].item()
        3.0
    """
    check_rows(stacked)
    if stacked.dim() < 2 or len(stacked) == 0:
        raise ValueError(
            f"merge_all takes at least one row, stacked to (R, ..., {ROW_SIZE}), not {tuple(stacked.shape)}"
        )
    while len(stacked) > 1:
        half = len(stacked) // 2
        stacked = torch.cat([merge(stacked[:half], stacked[half : 2 * half]), stacked[2 * half :]])
    return stacked[0]


def check_rows(rows: Tensor) -> None:
    """Raise ValueError unless ``rows`` is ``(..., ROW_SIZE)``."""
    if rows.dim() == 0 or rows.shape[-1] != ROW_SIZE:
        raise ValueError(f"rows have shape (..., {ROW_SIZE}), not {tuple(rows.shape)}")
