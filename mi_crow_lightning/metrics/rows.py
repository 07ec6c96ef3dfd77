"""Rows: the sufficient statistics of a set of elements as a fixed number of float64, and how they merge.

A row holds the numbers of `Row`. Merging needs nothing but the rows, so chunks, passes, micro-batches
and ranks can be summarised apart and joined in any order.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BINS


class Row(IntEnum):
    """What stands where in a row, ordered by how it merges; the bin counts follow from ``Row.BINS`` on."""

    COUNT = 0  # finite elements
    MEAN = 1
    M2 = 2  # sum of squared deviations from the mean
    M3 = 3  # of cubed deviations
    M4 = 4  # of fourth powers
    MINIMUM = 5
    BAD_BATCH = 6  # the first batch with a non-finite element; inf when there is none, or no batch was given
    MAXIMUM = 7
    NORM_MAX = 8  # largest Euclidean norm of a token
    CHANNELS = 9  # how many numbers of each kind the layer has in the channel part; 0 when not known yet
    MIXED = 10  # 1 when activations of different numbers of channels were seen
    ZEROS = 11
    NONFINITE = 12
    TOKENS = 13
    NORM_SUM = 14  # sum of the Euclidean norms of the tokens
    BINS = 15


ROW_SIZE = Row.BINS + BINS
_SMALLEST = slice(Row.MINIMUM, Row.BAD_BATCH + 1)
_LARGEST = slice(Row.MAXIMUM, Row.MIXED + 1)


def empty_rows(n: int, device: torch.device | str | None = None) -> Tensor:
    """Make ``n`` rows that have seen nothing: the neutral element of `merge`.

    Args:
        n: number of rows, one a layer.
        device: where to make them; None is torch's default device.

    Returns:
        ``(n, ROW_SIZE)`` float64: zeros, with minimum and first bad batch ``inf`` and maximum ``-inf``.

    Examples:
        >>> empty_rows(2)[:, Row.MINIMUM]
        tensor([inf, inf], dtype=torch.float64)
    """
    rows = torch.zeros(n, ROW_SIZE, dtype=torch.float64, device=device)
    rows[:, _SMALLEST] = math.inf
    rows[:, Row.MAXIMUM] = -math.inf
    return rows


def merge(a: Tensor, b: Tensor) -> Tensor:
    """Join the summaries of two disjoint sets of elements: `merge_all` of two.

    Args:
        a: ``(..., ROW_SIZE)`` rows.
        b: rows of the same shape.

    Returns:
        ``(..., ROW_SIZE)``, a new tensor.

    Raises:
        ValueError: the shapes differ, or the last dimension is not ``ROW_SIZE``.

    Examples:
        >>> from mi_crow_lightning.metrics.activation import summarize
        >>> merged = merge(summarize(torch.tensor([1.0, 2.0])), summarize(torch.tensor([6.0])))
        >>> merged[Row.MEAN].item(), merged[Row.M2].item()
        (3.0, 14.0)
    """
    if a.shape != b.shape:
        raise ValueError(f"rows of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be merged")
    check_rows(a)
    return merge_all(torch.stack([a, b]))


@torch.no_grad()
def merge_all(stacked: Tensor) -> Tensor:
    """Join the summaries of disjoint sets of elements into that of their union.

    With ``n = sum(n_i)``, ``mean = sum(n_i / n * mean_i)`` and ``d_i = mean_i - mean``::

        M2 = sum(M2_i + n_i d_i**2)
        M3 = sum(M3_i + 3 d_i M2_i + n_i d_i**3)
        M4 = sum(M4_i + 4 d_i M3_i + 6 d_i**2 M2_i + n_i d_i**4)

    which for two sets are the update formulas of Chan, Golub, LeVeque 1983 ("Algorithms for computing the
    sample variance: analysis and recommendations", The American Statistician 37(3)) and of Pébay 2008
    ("Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
    moments", Sandia report SAND2008-6212). Nothing is subtracted that is larger than the result, so a mean
    far from zero costs no digits. All else is a sum, a minimum or a maximum. Independent of order and
    grouping within rounding; rows of count 0 change nothing.

    Args:
        stacked: ``(R, ..., ROW_SIZE)``, for example the rows of ``R`` ranks.

    Returns:
        ``(..., ROW_SIZE)``, a new tensor.

    Raises:
        ValueError: there is nothing to merge, or the last dimension is not ``ROW_SIZE``.

    Examples:
        >>> from mi_crow_lightning.metrics.activation import summarize
        >>> merge_all(torch.stack([summarize(torch.full((2,), v)) for v in (1.0, 2.0, 6.0)]))[Row.MEAN].item()
        3.0
    """
    check_rows(stacked)
    if stacked.dim() < 2 or len(stacked) == 0:
        raise ValueError(
            f"merge_all takes at least one row, stacked to (R, ..., {ROW_SIZE}), not {tuple(stacked.shape)}"
        )
    out = stacked.sum(0)
    n, means, m2, m3 = stacked[..., : Row.M4].unbind(-1)  # (R, ...) each
    mean = (n / out[..., Row.COUNT].clamp(min=1) * means).sum(0)
    d = means - mean
    nd2 = n * d * d
    between = torch.stack([nd2, d * (3 * m2 + nd2), d * (4 * m3 + d * (6 * m2 + nd2))], -1)  # (R, ..., 3)
    out[..., Row.MEAN] = mean
    out[..., Row.M2 : Row.M4 + 1].add_(between.sum(0))
    out[..., _SMALLEST] = stacked[..., _SMALLEST].amin(0)
    out[..., _LARGEST] = stacked[..., _LARGEST].amax(0)
    return out


def check_rows(rows: Tensor) -> None:
    """Raise ValueError unless ``rows`` is ``(..., ROW_SIZE)``."""
    if rows.dim() == 0 or rows.shape[-1] != ROW_SIZE:
        raise ValueError(f"rows have shape (..., {ROW_SIZE}), not {tuple(rows.shape)}")
