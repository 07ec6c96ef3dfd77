"""How many numbers the weights of a model's layers have, all layers counted at once."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.parameter import is_lazy

from mi_crow_lightning.addressing.module_tree import ModuleTree, holders_of

__all__ = ["Sizes", "size_of"]


def size_of(module: nn.Module) -> int:
    """Return how many numbers the weights of a module have; weights made in its first pass do not count."""
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in module.parameters())


class Sizes:
    """How many numbers the weights of each layer have. A weight that modules share counts once in each layer.

    Args:
        tree: the model.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
        >>> sizes = Sizes(ModuleTree(net))
        >>> sizes.of(""), sizes.of("0"), sizes.of("1")
        (15, 9, 6)
    """

    def __init__(self, tree: ModuleTree) -> None:
        self._tree = tree
        self._counted: dict[str, int] = {}
        if not tree.aliases:
            self._count()

    def of(self, name: str) -> int:
        """Return how many numbers the weights of a layer have, those of the layers in it included."""
        if self._tree.aliases:  # a layer inside may have its first name elsewhere
            return size_of(self._tree.modules[name])
        return self._counted[name]

    def _count(self) -> None:
        first: dict[nn.Parameter, str] = {}  # the name of the first module that holds a weight
        others: dict[nn.Parameter, list[str]] = {}  # those of the other modules, where there are any
        for module, name in self._tree.first_names():
            own = 0
            for parameter in module._parameters.values():
                if parameter is None or (type(parameter) is not nn.Parameter and is_lazy(parameter)):
                    continue
                if parameter not in first:
                    first[parameter] = name
                elif name == first[parameter] or name in others.get(parameter, ()):
                    continue  # by two names in one module, or in it and in its wrapper
                else:
                    others.setdefault(parameter, []).append(name)
                own += parameter.numel()
            self._counted[name] = self._counted.get(name, 0) + own
        for name in reversed(self._tree.names):
            holder = name.rpartition(".")[0]
            self._counted[holder] = self._counted.get(holder, 0) + self._counted[name]
        for parameter, names in others.items():
            self._count_once(parameter.numel(), [first[parameter], *names])

    def _count_once(self, size: int, names: list[str]) -> None:
        """Take off what a weight that several modules hold was counted too often."""
        inside = Counter(holder for name in names for holder in (name, *holders_of(name)))
        for holder, count in inside.items():
            self._counted[holder] -= size * (count - 1)
