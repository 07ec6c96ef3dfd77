"""A short hash of a vector's numbers, to tell in a log which vector a run used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["content_hash"]

_LENGTH = 16  # hexadecimal digits


def content_hash(directions: Tensor | Mapping[int | str, Tensor] | Mapping[str, Tensor]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a vector, or of one for each layer.

    The numbers count as float32, and of several layers their names count too.

    Args:
        directions: of any shape, or such tensors by layer.

    Examples:
        >>> content_hash(torch.ones(2)) == content_hash(torch.ones(2).double())
        True
        >>> content_hash(torch.ones(2)) == content_hash({"h.0": torch.ones(2)})
        False
    """
    by_layer = directions if isinstance(directions, Mapping) else {"": directions}
    found = hashlib.sha256()
    for layer, tensor in by_layer.items():
        numbers = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        found.update(f"{layer}{list(numbers.shape)}".encode())
        found.update(numbers.astype("<f4").tobytes())
    return found.hexdigest()[:_LENGTH]
