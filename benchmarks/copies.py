"""Counting the traffic of a log step: copies to the host, and collectives between ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The calls that bring a tensor's numbers to the host, and wait for them.
LEAVES = {"cpu", "tolist", "item", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "nonzero"}


class HostCopies(TorchFunctionMode):
    """A counter of copies from the device to the host, which also counts when both are the CPU.

    Every tensor from outside counts as the device's. The result of a copy, anything made from it, and anything made
    from no tensor at all are the host's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._on_host: dict[int, Tensor] = {}  # the tensors too, so that no ID is used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        result = func(*args, **kwargs)
        leaves = func.__name__ in LEAVES or (func.__name__ == "to" and "cpu" in map(str, (*args[1:], *kwargs.values())))
        on_device = any(id(tensor) not in self._on_host for tensor in given)
        if leaves and on_device:
            self.count += 1
        if leaves or not on_device:
            self._on_host.update({id(value): value for value in tree_leaves(result) if isinstance(value, Tensor)})
        return result


class Collectives(TorchDispatchMode):
    """A counter of torch.distributed's collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "c10d"
        return func(*args, **(kwargs or {}))


def counted(function: Callable[[], Any]) -> tuple[int, int]:
    """Count the collectives and the copies to the host in one call."""
    with Collectives() as collectives, HostCopies() as copies:
        function()
    return collectives.count, copies.count
