"""Rows: the sufficient statistics of a set of elements as a few float64 numbers, and how they merge.

A row holds the numbers of `Row`, then one for each further `Sum` that was asked for. Merging needs nothing but the
rows, so chunks, passes, micro-batches and ranks can be summarised apart and joined in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_crow_lightning._warned import warn
from mi_crow_lightning.metrics.log2_bins import BINS
from mi_crow_lightning.warnings import ResumeWarning

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum


class Row(IntEnum):
    """The places of the numbers in a row, ordered by how they merge; the bin counts start at ``Row.BINS``."""

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
"""The built-in numbers of a row; further sums follow them, one number each."""

_SMALLEST = slice(Row.MINIMUM, Row.BAD_BATCH + 1)
_LARGEST = slice(Row.MAXIMUM, Row.MIXED + 1)


def empty_rows(n: int, device: torch.device | str | None = None, sums: Sequence[Sum] = ()) -> Tensor:
    """Make ``n`` rows that have seen nothing: the neutral element of `merge`.

    Args:
        n: the number of rows, one for each layer.
        device: where to make them; None is torch's default device.
        sums: the ``S`` further sums.

    Returns:
        ``(n, ROW_SIZE + S)`` float64: zeros, with minimum and first bad batch ``inf`` and maximum ``-inf``.

    Examples:
        >>> empty_rows(2)[:, Row.MINIMUM]
        tensor([inf, inf], dtype=torch.float64)
    """
    rows = torch.zeros(n, ROW_SIZE + len(sums), dtype=torch.float64, device=device)
    rows[:, _SMALLEST] = math.inf
    rows[:, Row.MAXIMUM] = -math.inf
    for place, one in enumerate(sums, ROW_SIZE):
        rows[:, place] = one.merge.empty
    return rows


def merge(a: Tensor, b: Tensor, sums: Sequence[Sum] = ()) -> Tensor:
    """Join the summaries of two disjoint sets of elements: `merge_all` of two.

    Args:
        a: rows, ``(..., ROW_SIZE + S)``.
        b: rows of the same shape.
        sums: the ``S`` further sums.

    Returns:
        ``(..., ROW_SIZE + S)``, a new tensor.

    Raises:
        ValueError: the shapes differ, or the last dimension is not ``ROW_SIZE + S``.

    Examples:
        >>> from mi_crow_lightning.metrics.activation import summarize
        >>> merged = merge(summarize(torch.tensor([1.0, 2.0])), summarize(torch.tensor([6.0])))
        >>> merged[Row.MEAN].item(), merged[Row.M2].item()
        (3.0, 14.0)
    """
    if a.shape != b.shape:
        raise ValueError(f"rows of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be merged")
    check_rows(a, sums)
    return merge_all(torch.stack([a, b]), sums)


@torch.no_grad()
def merge_all(stacked: Tensor, sums: Sequence[Sum] = ()) -> Tensor:
    """Join the summaries of disjoint sets of elements into the summary of their union.

    With ``n = sum(n_i)``, ``mean = sum(n_i / n * mean_i)`` and ``d_i = mean_i - mean``::

        M2 = sum(M2_i + n_i d_i**2)
        M3 = sum(M3_i + 3 d_i M2_i + n_i d_i**3)
        M4 = sum(M4_i + 4 d_i M3_i + 6 d_i**2 M2_i + n_i d_i**4)

    which for two sets are the update formulas of Chan, Golub, LeVeque 1983 ("Algorithms for computing the
    sample variance: analysis and recommendations", The American Statistician 37(3)) and of Pébay 2008
    ("Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
    moments", Sandia report SAND2008-6212). Nothing is subtracted that is larger than the result, so a mean
    far from zero costs no digits. The other numbers of `Row` are sums, minima or maxima, and further sums merge as
    they declare. The result does not depend on order or grouping, within rounding; rows of count 0 change nothing.

    Args:
        stacked: ``(R, ..., ROW_SIZE + S)``, for example the rows of ``R`` ranks.
        sums: the ``S`` further sums.

    Returns:
        ``(..., ROW_SIZE + S)``, a new tensor.

    Raises:
        ValueError: there is nothing to merge, or the last dimension is not ``ROW_SIZE + S``.

    Examples:
        >>> from mi_crow_lightning.metrics.activation import summarize
        >>> merge_all(torch.stack([summarize(torch.full((2,), v)) for v in (1.0, 2.0, 6.0)]))[Row.MEAN].item()
        3.0
    """
    check_rows(stacked, sums)
    if stacked.dim() < 2 or len(stacked) == 0:
        raise ValueError(
            f"merge_all takes at least one row, stacked to (R, ..., {ROW_SIZE + len(sums)}), not {tuple(stacked.shape)}"
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
    for place, one in enumerate(sums, ROW_SIZE):
        out[..., place] = one.merge.join(stacked[..., place])
    return out


def with_sums(rows: Tensor, saved: Sequence[str], sums: Sequence[Sum]) -> Tensor:
    """Return saved rows with these further sums, and no others.

    A sum that was not saved is unknown, nan, in every row that counted elements without it. A warning names it.

    Args:
        rows: ``(L, ROW_SIZE + number of saved)``.
        saved: the names of the further sums that the rows have, in order.
        sums: the ``S`` further sums that are wanted.

    Returns:
        ``(L, ROW_SIZE + S)``.

    Raises:
        ValueError: the rows do not have as many sums as ``saved`` names.
    """
    if rows.shape[-1] != ROW_SIZE + len(saved):
        raise ValueError(f"rows with the sums {list(saved)} have {ROW_SIZE + len(saved)} numbers, not {rows.shape[-1]}")
    counted = rows[..., Row.COUNT] > 0
    missing = [one.name for one in sums if one.name not in saved]
    if missing and counted.any():
        warn(
            f"the checkpoint does not hold the sums {missing}, so the first reading of the statistics that need them "
            "is nan",
            ResumeWarning,
            stacklevel=2,
        )
    columns = [
        rows[..., ROW_SIZE + list(saved).index(one.name)]
        if one.name in saved
        else torch.where(counted, math.nan, one.merge.empty)
        for one in sums
    ]
    return torch.cat([rows[..., :ROW_SIZE], *(column.to(rows)[..., None] for column in columns)], -1)


def check_rows(rows: Tensor, sums: Sequence[Sum] = ()) -> None:
    """Raise ValueError unless ``rows`` is ``(..., ROW_SIZE + S)`` for ``S`` further sums."""
    if rows.dim() == 0 or rows.shape[-1] != ROW_SIZE + len(sums):
        raise ValueError(f"rows have shape (..., {ROW_SIZE + len(sums)}), not {tuple(rows.shape)}")
