"""Values of Python that a graph of ``torch.compile`` hands from one of its operations to another.

A graph hands on tensors alone. So a value goes by its number, in a tensor that keeps the value alive: the value is
forgotten with the tensor, be it after the pass or, where a backward pass needs it, after that.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = ["keep", "kept", "like_kept"]


class _Kept(bytearray):
    """The memory of a number, which lives as long as the tensor on it, together with the value."""

    value: Any


_numbers = itertools.count(1)
_kept: WeakValueDictionary[int, _Kept] = WeakValueDictionary()


def keep(value: Any) -> Tensor:
    """Return the number of a value, ``(1,)`` int64 on the CPU, which keeps the value alive.

    Examples:
        >>> number = keep("a value")
        >>> kept(number)
        'a value'
    """
    memory, number = _Kept(8), next(_numbers)
    memory.value = value
    with torch.inference_mode(False):
        tensor = torch.frombuffer(memory, dtype=torch.int64)
        tensor[0] = number
    _kept[number] = memory
    return tensor


def kept(number: Tensor) -> Any:
    """Return the value of a number.

    Raises:
        RuntimeError: the tensor that `keep` returned is gone, and the value with it.
    """
    memory = _kept.get(int(number[0]))
    if memory is None:
        raise RuntimeError(
            "a graph of torch.compile copied a tensor of mi_crow_lightning and dropped the original, so what belongs "
            "to it is lost: run without hooks that move saved tensors, such as save_on_cpu, or without torch.compile"
        )
    return memory.value


def like_kept() -> Tensor:
    """Return what stands for a number while a graph is made."""
    return torch.empty((1,), dtype=torch.int64)
