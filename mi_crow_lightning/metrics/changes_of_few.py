"""How much an edit changed a few tokens in the host's memory: the numbers of ``changes.py``, in Python.

In a decode step the edited activation has one token a row. Between two blocks, whose weights fill the caches, each
torch operation takes ten microseconds or more, and `measure_change` makes thirty. These are four, and a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

__all__ = ["are_few", "joined", "numbers_of"]

_FEW = 32  # tokens; of more, the loop would take longer than operations
_LARGEST = 3  # as in `Change`
_is_compiling = torch.compiler.is_compiling


def are_few(before: Tensor, after: Tensor, dim: int) -> bool:
    """Return whether the tokens of an edit are few, and at hand: fake tensors, and those of a graph, hold no numbers.

    Args:
        before: the activation.
        after: the edited activation, of the same shape.
        dim: the dimension of the channels.
    """
    return (
        type(before) is type(after) is Tensor
        and before.is_cpu
        and after.is_cpu
        and before.dim() > 0
        and 0 < before.numel() <= _FEW * before.shape[dim]
        and not _is_compiling()
    )


def numbers_of(change: Tensor, norm: Tensor) -> Sequence[float]:
    """Return the numbers of `measure_change`, in the order of `Change`.

    Args:
        change: the norm of each token's change.
        norm: the norm of each token, of the same shape.
    """
    tokens = rated = broken = 0
    ratios = largest = 0.0
    columns = (_flat(part.tolist()) for part in (change, norm, change / norm))
    for moved, whole, ratio in zip(*columns, strict=True):
        if not moved < math.inf:  # it may be nan
            broken += whole < math.inf
        elif moved:
            tokens += 1
            if 0 < ratio < math.inf:
                rated, ratios, largest = rated + 1, ratios + ratio, max(largest, ratio)
    return tokens, rated, ratios, largest, min(tokens + broken, 1), 1, broken


def _flat(numbers: Any) -> Iterable[float]:
    """Return the numbers of nested lists: to flatten the tensor would be one more operation."""
    if not isinstance(numbers, list):
        return [numbers]
    return chain.from_iterable(map(_flat, numbers)) if numbers and isinstance(numbers[0], list) else numbers


def joined(one: Sequence[float], other: Sequence[float]) -> Sequence[float]:
    """Join the numbers of edits, as `merge_changes` joins summaries."""
    both = [ours + theirs for ours, theirs in zip(one, other, strict=True)]
    both[_LARGEST] = max(one[_LARGEST], other[_LARGEST])
    return both
