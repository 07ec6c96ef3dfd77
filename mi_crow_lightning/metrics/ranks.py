"""Numbers of all ranks as one: a single collective, however many numbers there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

__all__ = ["gather", "over_ranks"]


def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the tensors of all ranks in one collective: all have one shape, so none is asked for its own.

    Args:
        tensor: this rank's.
        group: the process group, None for all ranks.

    Returns:
        ``R`` tensors, in the order of the ranks.
    """
    gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, tensor.contiguous(), group=group)
    return gathered


def over_ranks(tensor: Tensor, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """The merged tensors of all ranks; where nothing is distributed, the tensor itself.

    Args:
        tensor: this rank's, of one shape on all ranks.
        merge: from ``(R, ...)`` to ``(...)``.

    >>> over_ranks(torch.ones(2), lambda stacked: stacked.sum(0))
    tensor([1., 1.])
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return tensor
    return merge(torch.stack(gather(tensor)))
