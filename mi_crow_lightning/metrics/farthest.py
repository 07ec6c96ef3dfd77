"""The few samples whose tokens have the smallest mean cosine, of as many batches as come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Farthest"]


class Farthest:
    """The samples that moved most; those whose mean is not a number moved further than any other.

    Args:
        most: how many are kept.

    Examples:
        >>> farthest = Farthest(1)
        >>> farthest.add(torch.tensor([1.0, 0.5, 0.7]), torch.tensor([0, 1, 1]), 2, [7])
        >>> [(round(mean, 3), facts) for mean, facts in farthest.found()]
        [(0.6, [7, 1])]
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._means: Tensor | None = None
        self._facts: Tensor | None = None

    def add(self, cosines: Tensor, rows: Tensor, samples: int, facts: Sequence[int]) -> None:
        """Add the samples of one batch.

        Args:
            cosines: ``(n,)``, of tokens.
            rows: ``(n,)``, the row of each.
            samples: how many rows there are.
            facts: whole numbers that are kept of each sample, before its row.
        """
        zeros = cosines.new_zeros(samples, dtype=torch.float64 if cosines.device.type != "mps" else torch.float32)
        counts = zeros.index_add(0, rows, torch.ones_like(cosines, dtype=zeros.dtype))
        means = zeros.index_add(0, rows, cosines.to(zeros.dtype)) / counts  # nan of a row without tokens
        means = means.nan_to_num(-torch.inf).where(counts > 0, torch.inf)
        given = torch.tensor([[*facts, row] for row in range(samples)], device=cosines.device)
        if self._means is not None and self._facts is not None:
            means, given = torch.cat([self._means, means]), torch.cat([self._facts, given])
        smallest = means.topk(min(self.most, len(means)), largest=False)
        self._means, self._facts = smallest.values, given[smallest.indices]

    def found(self) -> list[tuple[float, list[int]]]:
        """Return the mean cosine and the facts of each, the smallest first."""
        if self._means is None or self._facts is None:
            return []
        pairs = zip(self._means.tolist(), self._facts.tolist(), strict=True)
        found = sorted((mean, facts) for mean, facts in pairs if mean != math.inf)
        return [(mean if mean > -math.inf else math.nan, facts) for mean, facts in found]
