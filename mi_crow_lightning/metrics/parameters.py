"""Sums over parameters: of squares, in float64, each element once over all ranks that hold it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, distributed

from mi_crow_lightning.metrics.collectives import is_distributed

__all__ = ["is_counted_here", "local", "sum_of_squares"]

_PIECE = 2**22  # elements that are in float64 at once: 32 MiB


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, as a plain tensor of real numbers, detached."""
    tensor = tensor.detach()
    if _is_shared_out(tensor):
        tensor = tensor.to_local()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()  # the gradient of an embedding
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def is_counted_here(tensor: Tensor) -> bool:
    """Return whether this rank counts its part: of several ranks with the same part, the first one does.

    Raises:
        ValueError: ranks hold terms of a sum, which nobody has added up.
    """
    if not _is_shared_out(tensor):
        return not is_distributed() or distributed.get_rank() == 0
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError("each rank holds a term of the parameter, and their sum is not known here")
    place = tensor.device_mesh.get_coordinate() or ()
    held = zip(tensor.placements, place, strict=False)
    return bool(place) and all(at == 0 for placement, at in held if placement.is_replicate())


def sum_of_squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return the sum of the squares of all elements, ``()`` float64 on a device, without waiting for it.

    Examples:
        >>> sum_of_squares([torch.tensor([1.0, 2.0]), torch.tensor([[2.0]])], torch.device("cpu"))
        tensor(9., dtype=torch.float64)
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for tensor in tensors:
        wide = torch.float32 if tensor.device.type == "mps" else torch.float64
        for piece in tensor.reshape(-1).split(_PIECE):
            total += piece.to(wide).square().sum().to(device)
    return total


def _is_shared_out(tensor: Tensor) -> TypeGuard[Any]:
    """Return whether it is a DTensor; importing its class takes long."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")
