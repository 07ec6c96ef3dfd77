"""Tests by chance: whether a difference of two classes is longer than those that flipped signs or labels make.

If the two texts of a pair do not differ in what the classes mean, each difference might as well point the other way.
So the length of the sum is compared with its length under random signs, and without pairs with that under random
labels. Nothing is assumed of how activations are distributed: they are far from alike in all channels, so a comparison
with random directions of the whole space would let almost anything pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LEVEL", "Sample", "p_values"]

LEVEL = 0.05
"""The largest chance with which a difference of classes that are alike may pass as one."""
_DRAWS = 2000
_ALL_SIGNS = 11  # up to as many pairs, all signs are tried
_TIES = 1e-9  # sums that differ by rounding alone


class Sample(NamedTuple):
    """The rows that were kept of one layer.

    Attributes:
        x: ``(n, D)``: differences of pairs, or samples.
        label: ``(n,)``, 0 or 1, of samples; ``None`` of differences.
    """

    x: Tensor
    label: Tensor | None

    @property
    def suffices(self) -> bool:
        """Whether there are enough rows that the smallest possible p-value lies below `LEVEL`."""
        if self.label is None:
            return 2.0 ** -(len(self.x) - 1) < LEVEL
        return 2.0 / math.comb(len(self.label), int(self.label.sum())) < LEVEL

    def gram(self) -> Tensor:
        """Return the scalar products of all rows, ``(n, n)`` float64, of samples about their mean."""
        x = self.x.double()
        x = x if self.label is None else x - x.mean(0)
        return (x @ x.T).cpu()


def p_values(samples: Sequence[Sample]) -> list[float]:
    """Return for each layer how often chance makes a difference as long, at any of the layers.

    The draws are the same at all layers, and a layer's p-value is the share of draws in which the smallest one over
    the layers is as small (Westfall and Young 1993, "Resampling-Based Multiple Testing", single-step minP). So the
    chance that any of the layers falls below `LEVEL` without a reason is `LEVEL`, however many there are.

    Args:
        samples: what was kept of each layer.

    Returns:
        One number for each; nan where the rows do not suffice.

    Examples:
        >>> differences = torch.tensor([[1.0, 0.3], [1.0, -0.2], [1.0, 0.1], [1.0, 0.0], [1.0, 0.2], [1.0, -0.3]])
        >>> p_values([Sample(differences, None)])
        [0.03125]
    """
    judged = [i for i, sample in enumerate(samples) if sample.suffices]
    found = [float("nan")] * len(samples)
    if not judged:
        return found
    most = max(len(samples[i].x) for i in judged)
    signs = _signs(most)  # (K, n)
    alone = torch.stack([_alone(samples[i], signs) for i in judged])  # (L, K)
    smallest = alone.amin(0).sort().values
    together = torch.searchsorted(smallest, alone[:, 0].contiguous(), right=True).double() / smallest.numel()
    for i, p in zip(judged, together.tolist(), strict=True):
        found[i] = p
    return found


def _alone(sample: Sample, signs: Tensor) -> Tensor:
    """Return the p-value of each draw at one layer, ``(K,)``; the first is what was seen."""
    n = len(sample.x)
    weights = signs[:, :n] if sample.label is None else _weights(sample.label.cpu(), len(signs))
    lengths = ((weights @ sample.gram()) * weights).sum(1)
    ordered = lengths.sort().values
    below = torch.searchsorted(ordered, lengths - _TIES * lengths.abs().max())
    return (len(lengths) - below).double() / len(lengths)


def _signs(n: int) -> Tensor:
    """Return the signs of ``n`` differences in each draw, ``(K, n)``; the first are all 1."""
    if n <= _ALL_SIGNS:  # the last one's sign can stay: only the length of the sum counts
        return torch.tensor([(*signs, 1.0) for signs in itertools.product((1.0, -1.0), repeat=n - 1)]).double()
    coins = torch.randint(0, 2, (_DRAWS, n), generator=torch.Generator().manual_seed(0))
    signs = 1.0 - 2.0 * coins.double()
    signs[0] = 1.0
    return signs


def _weights(label: Tensor, draws: int) -> Tensor:
    """Return the weights of samples in the difference of class means, with labels dealt out again: ``(K, n)``."""
    positive = int(label.sum())
    weight = torch.where(label == 1, 1.0 / positive, -1.0 / (len(label) - positive)).double()
    order = torch.rand(draws, len(label), generator=torch.Generator().manual_seed(0)).argsort(1)
    dealt = weight[order]
    dealt[0] = weight
    return dealt
