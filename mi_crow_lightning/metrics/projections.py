"""Projections of activations on directions, and their running summary: pure functions.

A projection is the length of the component along a unit vector, ``x @ u``, in units of the activation; a cosine is the
projection divided by the activation's own length.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum

import torch
from torch import Tensor

__all__ = [
    "Projection",
    "empty_projections",
    "mean_by_text",
    "merge_projections",
    "onto",
    "project",
    "summarize_projections",
]


class Projection(IntEnum):
    """The places of the numbers in a summary of the projections on one direction."""

    COUNT = 0  # tokens
    MEAN = 1
    M2 = 2  # sum of squared deviations from the mean
    COSINES = 3  # sum of the cosines
    MINIMUM = 4
    MAXIMUM = 5


def project(x: Tensor, units: Tensor) -> Tensor:
    """Return the components of activations along unit vectors, by one matrix product.

    It is computed in the dtype of ``x`` under autocast too, which would take both to half precision.

    Args:
        x: ``(..., D)``.
        units: ``(K, D)``, of the dtype of ``x``.

    Returns:
        ``(..., K)``.

    Examples:
        >>> project(torch.tensor([[3.0, 4.0]]), torch.eye(2))
        tensor([[3., 4.]])
    """
    with _without_autocast(x):
        return x @ units.mT


def onto(components: Tensor, units: Tensor) -> Tensor:
    """Return the vectors ``(..., D)`` that have these components ``(..., K)`` along unit vectors ``(K, D)``."""
    with _without_autocast(components):
        return components @ units


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def empty_projections(*shape: int, device: torch.device | str | None = None) -> Tensor:
    """Make summaries that have seen nothing, the neutral element of `merge_projections`: ``(*shape, 6)`` float64."""
    rows = torch.zeros(*shape, len(Projection), dtype=torch.float64, device=device)
    rows[..., Projection.MINIMUM], rows[..., Projection.MAXIMUM] = math.inf, -math.inf
    return rows


@torch.no_grad()
def summarize_projections(along: Tensor, norms: Tensor, mask: Tensor | None = None) -> Tensor:
    """Summarise the projections of the tokens that count and are finite.

    Args:
        along: ``(..., K)``, the projections.
        norms: ``(...)``, the tokens' Euclidean norms.
        mask: bool, of the shape of ``norms``' leading dimensions: True where tokens count. ``None`` for all.

    Returns:
        ``(K, 6)`` float64, see `Projection`.

    Examples:
        >>> row = summarize_projections(torch.tensor([[1.0], [5.0]]), torch.tensor([2.0, 5.0]))[0]
        >>> row[Projection.MEAN].item(), row[Projection.COSINES].item()
        (3.0, 1.5)
    """
    wide = along.to(torch.float64)
    keep = torch.isfinite(wide)
    if mask is not None:
        keep = keep & mask.reshape(*mask.shape, *[1] * (wide.dim() - mask.dim()))
    wide, keep = wide.reshape(-1, wide.shape[-1]), keep.expand_as(wide).reshape(-1, wide.shape[-1])  # (N, K)
    if not len(wide):
        return empty_projections(wide.shape[-1], device=along.device)
    zero = torch.where(keep, wide, 0.0)
    count = keep.sum(0, dtype=torch.float64)
    mean = zero.sum(0) / count.clamp(min=1)
    deviations = torch.where(keep, wide - mean, 0.0)
    lengths = norms.to(torch.float64).reshape(-1, 1)
    cosines = torch.where(keep & (lengths > 0), wide / lengths, 0.0)
    least, most = torch.where(keep, wide, math.inf).amin(0), torch.where(keep, wide, -math.inf).amax(0)
    return torch.stack([count, mean, (deviations**2).sum(0), cosines.sum(0), least, most], -1)


@torch.no_grad()
def mean_by_text(along: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean projection of each text over its tokens that count and are finite.

    Args:
        along: ``(B, T, K)``, the projections.
        mask: ``(B, T)`` bool: True where tokens count. ``None`` for all.

    Returns:
        ``(B, K)`` float64; NaN for a text without such a token.

    Examples:
        >>> mean_by_text(torch.tensor([[[1.0], [5.0]], [[2.0], [9.0]]]), torch.tensor([[True, True], [True, False]]))
        tensor([[3.],
                [2.]], dtype=torch.float64)
    """
    wide = along.to(torch.float64)
    keep = torch.isfinite(wide)
    if mask is not None:
        keep = keep & mask[..., None]
    return torch.where(keep, wide, 0.0).sum(1) / keep.sum(1)


@torch.no_grad()
def merge_projections(stacked: Tensor) -> Tensor:
    """Join summaries of disjoint sets of tokens into the summary of their union.

    ``M2 = sum(M2_i + n_i (mean_i - mean)**2)``, as in Chan, Golub, LeVeque 1983 ("Algorithms for computing the sample
    variance", The American Statistician 37(3)): nothing is subtracted that is larger than the result.

    Args:
        stacked: ``(R, ..., 6)``, for example the summaries of ``R`` ranks.

    Returns:
        ``(..., 6)``, a new tensor.

    Examples:
        >>> one, other = (summarize_projections(torch.full((1, 1), v), torch.ones(1)) for v in (1.0, 3.0))
        >>> merge_projections(torch.stack([one, other]))[0, : Projection.COSINES]
        tensor([2., 2., 2.], dtype=torch.float64)
    """
    out = stacked.sum(0)
    n, means = stacked[..., Projection.COUNT], stacked[..., Projection.MEAN]
    mean = (n * means).sum(0) / out[..., Projection.COUNT].clamp(min=1)
    out[..., Projection.MEAN] = mean
    out[..., Projection.M2] += (n * (means - mean) ** 2).sum(0)
    out[..., Projection.MINIMUM] = stacked[..., Projection.MINIMUM].amin(0)
    out[..., Projection.MAXIMUM] = stacked[..., Projection.MAXIMUM].amax(0)
    return out
