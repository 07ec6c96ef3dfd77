"""Tensors of all ranks: gathered, or merged into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gather", "gather_rows", "is_distributed", "over_ranks"]


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the tensors of all ranks in one collective: all have one shape, so none is asked for its own.

    Args:
        tensor: this rank's.
        group: the process group, None for all ranks.

    Returns:
        ``R`` tensors, in the order of the ranks.
    """
    gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(gathered, tensor.contiguous(), group=group)
    return gathered


def gather_rows(rows: Tensor, group: Any = None) -> Tensor:
    """Gather the rows of all ranks, of which each may have another number: two collectives.

    Args:
        rows: ``(n, ...)``, this rank's.
        group: the process group, None for all ranks.

    Returns:
        ``(sum of n, ...)``, in the order of the ranks.
    """
    counts = [int(n) for n in torch.cat(gather(torch.tensor([len(rows)], device=rows.device), group)).tolist()]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:n] for part, n in zip(gather(padded, group), counts, strict=True)])


def over_ranks(tensor: Tensor, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """The merged tensors of all ranks; where nothing is distributed, the tensor itself.

    Args:
        tensor: this rank's, of one shape on all ranks.
        merge: from ``(R, ...)`` to ``(...)``.

    >>> over_ranks(torch.ones(2), lambda stacked: stacked.sum(0))
    tensor([1., 1.])
    """
    return merge(torch.stack(gather(tensor))) if is_distributed() else tensor
