"""How far activations moved from a reference: cosine, norm ratio, linear CKA, subspace angle, and KL of logits.

A row ``(5 + 2k + 4k²,)`` float64 holds all that one layer's pairs of tokens add up to, however many there are. CKA and
the angle come from sketches ``x @ S`` of ``k`` numbers. Where a layer is at most ``k`` wide, ``S`` is the identity and
both are exact. Else ``S`` has independent random signs, and each squared Frobenius norm of CKA,
``|Xᵀ Y|² = |A|²``, is estimated from the entries of ``Sᵀ A S`` off its diagonal, whose expected square is ``|A|²``.

- linear CKA: Kornblith et al., 2019, arXiv 1905.00414, with both sides centred over all tokens;
- principal angles: Björck and Golub, 1973, from the sine where the angle is small.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

__all__ = [
    "Column",
    "LayerChange",
    "compared",
    "divergence",
    "empty_row",
    "linear_cka",
    "logit_row",
    "merge_drift",
    "pair_row",
    "partial_divergence",
    "principal_angle",
    "read_change",
    "sketch_matrix",
]

_ROUNDING = 1e-12  # of a sum of probabilities
_MOST_LOGITS = {"cpu": 2**16}  # that are looked at together: those of a CPU stay in its cache
_ELSEWHERE = 2**22
_FORBIDDEN = -1e35  # stands for the logarithm of 0, which times 0 would be nan
_INFINITE = 1e8


class Column(IntEnum):
    """The first columns of a row; those of a sketch follow. The row of the logits has the first two alone."""

    COUNT = 0
    SUM = 1  # of cosines, or of KL
    RATIOS = 2
    WIDTH = 3  # the layer's
    LEAST = 4  # the smallest cosine


class LayerChange(NamedTuple):
    """The numbers that are read from the row of one layer.

    Attributes:
        tokens: the number of tokens.
        cosine: their mean cosine with the reference.
        cosine_min: the smallest.
        norm_ratio: the mean of their norm over that of the reference.
        cka: linear CKA; nan where one side does not vary.
        angle: the largest principal angle between the leading components, in degrees; nan where one side does not vary.
    """

    tokens: int
    cosine: float
    cosine_min: float
    norm_ratio: float
    cka: float
    angle: float


def sketch_matrix(width: int, size: int, seed: int) -> Tensor:
    """Return the matrix ``(D, k)`` of sketches: the identity, padded with zeros, if ``D <= k``, else random signs.

    Args:
        width: ``D``.
        size: ``k``.
        seed: equal seeds give equal signs.

    Examples:
        >>> sketch_matrix(2, 3, 0)
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if width <= size:
        return torch.eye(width, size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (width, size), generator=generator).float() * 2 - 1


def compared(x: Tensor, y: Tensor, norms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return cosine and norm ratio of pairs of tokens. Two zero vectors are equal; a zero and another have cosine 0.

    Args:
        x: ``(n, D)``, the tokens; or their sketches.
        y: ``(n, D)``, those of the reference.
        norms: ``(2, n)``, the norms of both, where ``x`` and ``y`` are sketches.

    Returns:
        ``(n,)`` each.

    Examples:
        >>> cosines, ratios = compared(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
        >>> [round(one.item(), 4) for one in (cosines, ratios)]
        [0.6, 1.6667]
    """
    own = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    both_zero = (own[0] == 0) & (own[1] == 0)
    product = own[0] * own[1]
    cosines = (torch.linalg.vecdot(x, y) / product.where(product > 0, 1)).clamp(-1, 1)
    upper, lower = own if norms is None else (norms[0], norms[1])
    ratios = upper / lower  # x / 0 is infinite
    return cosines.where(~both_zero, 1), ratios.where((upper != 0) | (lower != 0), 1)


def empty_row(size: int) -> Tensor:
    """Return the row of a layer that saw nothing, for sketches of ``size`` numbers."""
    row = torch.zeros(len(Column) + 2 * size + 4 * size * size, dtype=torch.float64)
    row[Column.WIDTH], row[Column.LEAST] = -math.inf, math.inf
    return row


def pair_row(cosines: Tensor, ratios: Tensor, width: int, sketches: Tensor) -> Tensor:
    """Return the row of some pairs of tokens.

    Args:
        cosines: ``(n,)``, at least one.
        ratios: ``(n,)``.
        width: the layer's, ``D``.
        sketches: ``(n, 2k)``, those of the tokens beside those of the reference.
    """
    first = [cosines.new_tensor(len(cosines)), cosines.sum(), ratios.sum(), cosines.new_tensor(width), cosines.min()]
    both = sketches.double()
    return torch.cat([torch.stack(first).double(), both.sum(0), (both.T @ both).flatten()])


def logit_row(divergences: Tensor, size: int) -> Tensor:
    """Return the row of the logits of some tokens, from their divergences ``(n,)``."""
    row = empty_row(size).to(divergences.device)
    row[Column.COUNT], row[Column.SUM] = len(divergences), divergences.double().sum()
    return row


def merge_drift(stacked: Tensor) -> Tensor:
    """Join rows ``(R, ..., K)`` into ``(..., K)``."""
    joined = stacked.sum(0)
    joined[..., Column.WIDTH] = stacked[..., Column.WIDTH].amax(0)
    joined[..., Column.LEAST] = stacked[..., Column.LEAST].amin(0)
    return joined


def read_change(row: Tensor, components: int) -> LayerChange | None:
    """Read one layer's row; ``None`` where no token was seen.

    Args:
        row: on the CPU.
        components: how many leading components the angle is between.
    """
    count = row[Column.COUNT].item()
    if not count:
        return None
    sums, gram, size = _sketched(row)
    centred = gram - torch.outer(sums, sums) / count
    own, reference, cross = centred[:size, :size], centred[size:, size:], centred[:size, size:]
    exact = row[Column.WIDTH].item() <= size
    return LayerChange(
        tokens=int(count),
        cosine=row[Column.SUM].item() / count,
        cosine_min=row[Column.LEAST].item(),
        norm_ratio=row[Column.RATIOS].item() / count,
        cka=linear_cka(own, cross, reference, exact),
        angle=principal_angle(*leading(own, reference, components)),
    )


def linear_cka(own: Tensor, cross: Tensor, reference: Tensor, exact: bool = True) -> float:
    """Return linear CKA from the centred products ``Xᵀ X``, ``Xᵀ Y`` and ``Yᵀ Y``; nan if one side does not vary.

    Args:
        own: ``(D, D)``, or ``(k, k)`` of sketches.
        cross: the same.
        reference: the same.
        exact: whether these are the products themselves; else the entries off the diagonal count alone.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> linear_cka(x.T @ x, x.T @ (2 * x), 4 * x.T @ x)
        1.0
    """
    mine, shared, others = (_squared(one, exact) for one in (own, cross, reference))
    scale = math.sqrt(mine) * math.sqrt(others)
    return shared / scale if scale > 0 else math.nan


def _squared(product: Tensor, exact: bool) -> float:
    squares = product.square()
    return (squares.sum() if exact else squares.sum() - squares.diagonal().sum()).item()


def leading(own: Tensor, reference: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return the leading principal components of both sides, ``(k, r)``, as many as both have."""
    if not (torch.isfinite(own).all() and torch.isfinite(reference).all()):
        return own[:, :0], reference[:, :0]
    spread, vectors = torch.linalg.eigh(torch.stack([own, reference]))  # in rising order
    ranks = (spread > 1e-12 * spread[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)).sum(1)
    kept = min(components, int(ranks.min()))
    first, second = vectors[..., vectors.shape[-1] - kept :]
    return first, second


def principal_angle(first: Tensor, second: Tensor) -> float:
    """Return the largest principal angle between two subspaces, in degrees; nan between subspaces without dimensions.

    Args:
        first: ``(D, r)``, orthonormal columns.
        second: ``(D, r)``.

    Examples:
        >>> angle = principal_angle(torch.eye(3)[:, :1], torch.tensor([[1.0], [1.0], [0.0]]) / 2**0.5)
        >>> round(angle, 4)
        45.0
    """
    if not first.shape[-1]:
        return math.nan
    inner = first.T @ second
    cosine = torch.linalg.svdvals(inner).min().item()
    sine = torch.linalg.svdvals(second - first @ inner).max().item()
    angle = math.asin(min(sine, 1.0)) if cosine * cosine > 0.5 else math.acos(max(-1.0, min(cosine, 1.0)))
    return math.degrees(angle)


def divergence(logits: Tensor, reference: Tensor, places: Tensor | None = None) -> Tensor:
    """Return ``KL(p || q)`` of each token in nats: ``p`` of ``logits``, ``q`` of ``reference``.

    Args:
        logits: ``(n, V)``.
        reference: ``(n, V)``.
        places: ``(m,)``, which of the tokens count, in rising order; ``None`` for all. They are taken out
            a few at a time.

    Returns:
        ``(m,)``.

    Examples:
        >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).tolist()
        [0.0]
    """
    at_once = max(1, _MOST_LOGITS.get(logits.device.type, _ELSEWHERE) // max(1, logits.shape[-1]))
    if places is None or len(places) == len(logits):
        parts = zip(logits.split(at_once), reference.split(at_once), strict=True)
        found = [_divergence(one, other) for one, other in parts]
    else:
        chosen = places.split(at_once)
        found = [_divergence(logits.index_select(0, some), reference.index_select(0, some)) for some in chosen]
    return torch.cat(found) if found else logits.new_zeros(0)


def partial_divergence(log_p: Tensor, log_q: Tensor, known: Tensor | None = None) -> Tensor:
    """Return ``KL(p || q)`` of distributions that are known in part, with all the rest as one outcome.

    It is never above the divergence itself, and equal to it where the rest is nothing.

    Args:
        log_p: ``(n, m)``, the log-probabilities of some outcomes.
        log_q: ``(n, m)``, those of the same outcomes.
        known: ``(n, m)`` bool, which of them count; ``None`` for all.

    Returns:
        ``(n,)`` float64.

    Examples:
        >>> p, q = torch.tensor([[0.5]]), torch.tensor([[0.25]])
        >>> round(partial_divergence(p.log(), q.log()).item(), 4)  # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
        0.1438
    """
    if log_p.device.type == "mps":  # which has no float64
        log_p, log_q, known = log_p.cpu(), log_q.cpu(), known if known is None else known.cpu()
    log_p, log_q = log_p.double(), log_q.double()
    if known is not None:
        log_p, log_q = log_p.where(known, -math.inf), log_q.where(known, -math.inf)
    rest = torch.stack([1 - log_p.exp().sum(-1), 1 - log_q.exp().sum(-1)]).clamp(min=_ROUNDING)
    of_rest = rest[0] * (rest[0] / rest[1]).log()
    parts = (log_p.exp() * (log_p - log_q)).where(log_p > -math.inf, 0)
    return (parts.sum(-1) + of_rest).clamp(min=0)


def _divergence(logits: Tensor, reference: Tensor) -> Tensor:
    log_p, log_q = (log_softmax(_wide(one), -1).clamp_(min=_FORBIDDEN) for one in (logits, reference))
    found = log_p.exp().mul_(log_p.sub_(log_q)).sum(-1).clamp(min=0)
    return found.where((found < _INFINITE) | found.isnan(), math.inf)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sketched(row: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the sums ``(2k,)`` and the products ``(2k, 2k)`` of a row's sketches, and ``k``."""
    rest = row[len(Column) :]
    both = (math.isqrt(1 + 4 * len(rest)) - 1) // 2  # 2k + (2k)² numbers
    return rest[:both], rest[both:].reshape(both, both), both // 2
