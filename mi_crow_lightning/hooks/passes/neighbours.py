"""The modules around layers, each looked at once however many layers are asked about.

A list of a thousand blocks would otherwise be gone through for each of its blocks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import nn

__all__ = ["Family", "Once"]

V = TypeVar("V")


class Once(Generic[V]):
    """A function of modules whose results are kept.

    Args:
        function: from a module to a value.
    """

    def __init__(self, function: Callable[[nn.Module], V]) -> None:
        self._function = function
        self._found: dict[nn.Module, V] = {}

    def __call__(self, module: nn.Module) -> V:
        """Return the value of a module."""
        if module not in self._found:
            self._found[module] = self._function(module)
        return self._found[module]


class Family:
    """The children of a module that matter to their neighbours, in order.

    Args:
        parent: the module.
        passed_over: whether a child does not matter.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
        >>> family = Family(net, lambda child: isinstance(child, nn.ReLU))
        >>> family.last_before(net[3]) is net[2], family.first_after(net[3]) is None
        (True, True)
    """

    def __init__(self, parent: nn.Module, passed_over: Callable[[nn.Module], bool]) -> None:
        children = list(parent.children())
        self._places = {child: place for place, child in enumerate(children)}
        self._kept = [place for place, child in enumerate(children) if not passed_over(child)]
        self._children = children

    def last_before(self, child: nn.Module) -> nn.Module | None:
        """Return the last child before this one; ``None`` if there is none."""
        index = bisect_left(self._kept, self._place(child))
        return self._children[self._kept[index - 1]] if index else None

    def first_after(self, child: nn.Module) -> nn.Module | None:
        """Return the first child after this one; ``None`` if there is none."""
        index = bisect_right(self._kept, self._place(child))
        return self._children[self._kept[index]] if index < len(self._kept) else None

    def _place(self, child: nn.Module) -> int:
        return self._places.get(child, 0)
