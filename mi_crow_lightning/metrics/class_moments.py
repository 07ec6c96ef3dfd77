"""Moments of labelled vectors in constant memory: of two classes, and of the differences of their pairs.

The count, the mean and, where it is asked for, the scatter matrix of each group (the sum of outer products of
deviations from the mean) are kept in float64. Batches and ranks merge without cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, distributed

from mi_crow_lightning.choices import GroupName
from mi_crow_lightning.metrics.collectives import collective, gather

__all__ = ["GROUPS", "ClassMoments", "GroupMoments", "merge_means", "reduce_moments"]

GROUPS: tuple[str, ...] = get_args(GroupName)
"""The groups: the vectors of each class, and for each pair positive minus negative."""


class GroupMoments(NamedTuple):
    """Number, mean and covariance of one group of vectors.

    Attributes:
        n: the number of vectors.
        mean: ``(D,)`` float64; zeros when there are no vectors.
        covariance: ``(D, D)`` float64, divided by ``n - 1``; ``None`` when it was not kept.
    """

    n: int
    mean: Tensor
    covariance: Tensor | None


class ClassMoments:
    """Running moments of the labelled vectors of one layer.

    With ``n``, ``m`` and ``S`` the count, mean and scatter so far, and new vectors ``x_i``, `merge_means` gives the new
    mean, and::

        S += n (m - mean)(m - mean)^T + sum_i (x_i - mean)(x_i - mean)^T

    (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations",
    The American Statistician 37(3)): only deviations are squared, so a mean far from zero costs no digits.
    Nothing waits for the device. Memory: ``3 D`` numbers, and ``D**2`` for each scatter matrix.

    Args:
        width: ``D``.
        scatter: the `GROUPS` whose scatter matrix is kept.
        device: where the numbers are kept.

    Attributes:
        count: ``(3,)``, the number of vectors of each group.
        mean: ``(3, D)``.
        scatter: ``(D, D)`` by group.

    Raises:
        ValueError: a group is not known.

    Examples:
        >>> moments = ClassMoments(2)
        >>> _ = moments.update(torch.tensor([[1.0, 0.0], [4.0, 2.0]]), torch.tensor([0, 1]), torch.tensor([7, 7]))
        >>> moments.of("difference").mean
        tensor([3., 2.], dtype=torch.float64)
    """

    def __init__(self, width: int, scatter: Sequence[str] = (), device: torch.device | str | None = None) -> None:
        if isinstance(scatter, str) or (unknown := [group for group in scatter if group not in GROUPS]):
            wrong = scatter if isinstance(scatter, str) else unknown
            raise ValueError(f"scatter={wrong!r}: choose a list of groups from {', '.join(map(repr, GROUPS))}")
        with torch.inference_mode(False):  # tensors made in inference mode could not be written to later
            zeros = torch.zeros(len(GROUPS), width, dtype=torch.float64, device=device)
            self.mean = zeros
            self.count = zeros.new_zeros(len(GROUPS))
            self.scatter = {group: zeros.new_zeros(width, width) for group in GROUPS if group in scatter}

    @torch.no_grad()
    def update(self, x: Tensor, label: Tensor, pair: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add vectors.

        Args:
            x: ``(N, D)``, any floating-point dtype.
            label: ``(N,)`` integers: 0 for the negative class, 1 for the positive class; others are left out.
            pair: ``(N,)`` integers: a negative and a positive vector with the same number are a pair. A vector without
                exactly one partner among these vectors is in no pair. ``None`` when there are no pairs.

        Returns:
            ``(N, D)`` float64 and ``(N,)`` bool: the differences of pairs, and which rows are any.
        """
        x = x.to(self.mean.device, torch.float64)
        negative, positive = label == 0, label == 1
        difference, paired = x, torch.zeros_like(positive)
        if pair is not None:
            partners = positive[:, None] & negative & (pair[:, None] == pair)  # (N, N)
            paired = (partners.sum(1) == 1) & (partners.sum(0)[partners.int().argmax(1)] == 1)
            difference = x - torch.where(paired[:, None], partners, False).double() @ _finite(x, negative)
        self._add(torch.stack([x, x, difference]), torch.stack([negative, positive, paired]))
        return difference, paired

    def _add(self, x: Tensor, member: Tensor) -> None:
        """Add ``x`` (3, N, D) to the groups where ``member`` (3, N) is True."""
        x = torch.where(member[..., None], x, 0.0)
        count = member.sum(1).double()
        mean = x.sum(1) / count.clamp(min=1)[:, None]
        joined = merge_means(torch.stack([self.count, count]), torch.stack([self.mean, mean]))
        for group, scatter in self.scatter.items():
            i = GROUPS.index(group)
            within = torch.where(member[i, :, None], x[i] - joined[i], 0.0)
            between = self.count[i].sqrt() * (self.mean[i] - joined[i])
            rows = torch.cat([within, between[None]])  # (N + 1, D)
            scatter.addmm_(rows.T, rows)
        self.mean.copy_(joined)
        self.count.add_(count)

    def of(self, group: str) -> GroupMoments:
        """Return the moments of one of the `GROUPS`; waits for the device."""
        i = GROUPS.index(group)
        n, scatter = int(self.count[i]), self.scatter.get(group)
        return GroupMoments(n, self.mean[i].clone(), None if scatter is None else scatter / max(n - 1, 1))

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all numbers, on the CPU."""
        kept = {"count": self.count, "mean": self.mean, **self.scatter}
        return {name: tensor.detach().cpu().clone() for name, tensor in kept.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device | str | None = None) -> ClassMoments:
        """Make the moments again from what `tensors` returned."""
        scatter = [name for name in tensors if name in GROUPS]
        moments = cls(tensors["mean"].shape[1], scatter, device)
        for name, kept in {"count": moments.count, "mean": moments.mean, **moments.scatter}.items():
            kept.copy_(tensors[name])
        return moments


def _finite(x: Tensor, member: Tensor) -> Tensor:
    """Return ``x`` with zeros in the rows that are not members: a matrix product would spread their NaN to all."""
    return torch.where(member[:, None], x, 0.0)


def merge_means(counts: Tensor, means: Tensor) -> Tensor:
    """Return the means of the unions of disjoint sets: ``mean = sum_r (n_r / n) mean_r``.

    Args:
        counts: ``(R, G)``, the number of vectors that each of ``R`` sets has in each of ``G`` groups.
        means: ``(R, G, D)``, the means of those vectors.

    Returns:
        ``(G, D)``; zeros where all sets are empty.

    Examples:
        >>> merge_means(torch.tensor([[1.0], [3.0]]), torch.tensor([[[8.0]], [[4.0]]]))
        tensor([[5.]])
    """
    share = counts / counts.sum(0).clamp(min=1)
    return (share[..., None] * means).sum(0)


@torch.no_grad()
def reduce_moments(layers: Sequence[ClassMoments], group: Any = None) -> None:
    """Replace the moments of each rank by those of all ranks together, in place.

    It takes one collective for counts and means, and one for each scatter matrix. All ranks must hold the same layers,
    of the same widths.

    Args:
        layers: this rank's moments, by layer.
        group: the process group, None for all ranks.
    """
    if not layers:
        return
    centres = [torch.cat([moments.count, moments.mean.flatten()]) for moments in layers]
    ranks = torch.stack(gather(torch.cat(centres), group))  # (R, size)
    for moments, part in zip(layers, ranks.split([len(one) for one in centres], dim=1), strict=True):
        counts, means = part[:, : len(GROUPS)], part[:, len(GROUPS) :].unflatten(1, (len(GROUPS), -1))
        joined = merge_means(counts, means)
        for name, scatter in moments.scatter.items():
            i = GROUPS.index(name)
            off = moments.mean[i] - joined[i]
            scatter.addr_(off, off * moments.count[i])
            with collective("all_reduce of a scatter matrix", group):
                distributed.all_reduce(scatter, group=group)
        moments.count.copy_(counts.sum(0))
        moments.mean.copy_(joined)
