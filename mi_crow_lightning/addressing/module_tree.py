"""Names of layers: those of ``named_modules()`` without the prefixes that wrappers add.

``torch.compile``, FSDP, activation checkpointing, DDP, weight averaging, Fabric and PEFT wrap modules and add a
segment to their names. A user addresses layers by the names of the bare model, and reads these in tags.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Sequence
from functools import cached_property

from torch import nn

__all__ = ["ModuleTree", "can_be_called", "holders_of", "unwrapped", "without_wrappers"]

_WRAPPER_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# "module" and "model" are ordinary names too: they only mean a wrapper below these classes.
_WRAPPER_CLASSES = {
    "module": ("DistributedDataParallel", "DataParallel", "AveragedModel"),
    "base_model": ("PeftModel",),
    "model": ("BaseTuner",),
    "_forward_module": ("_FabricModule",),
    "_original_module": ("_FabricModule",),
}
_WRAPPER_NAMES = frozenset([*_WRAPPER_SEGMENTS, *_WRAPPER_CLASSES])


def can_be_called(module: nn.Module) -> bool:
    """Return whether a module has a ``forward``: containers such as ``nn.ModuleList`` have none."""
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside its wrappers."""
    children = module._modules
    if _WRAPPER_NAMES.isdisjoint(children.keys()):  # nearly always: asked of every module, so asked at once
        return module
    for name, child in children.items():
        if child is not None and _is_wrapper_segment(name, module):
            return unwrapped(child)
    return module


def _is_wrapper_segment(name: str, parent: nn.Module) -> bool:
    if name in _WRAPPER_SEGMENTS:
        return True
    if name not in _WRAPPER_CLASSES:
        return False
    classes = {cls.__name__ for cls in type(parent).__mro__}
    return not classes.isdisjoint(_WRAPPER_CLASSES.get(name, ()))


def without_wrappers(name: str) -> str:
    """Return the name of a tensor or module without the segments that mean a wrapper under any class.

    Examples:
        >>> without_wrappers("model._orig_mod.layers.3.weight")
        'model.layers.3.weight'
    """
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPER_SEGMENTS)


def holders_of(name: str) -> Iterator[str]:
    """Yield the clean names of what holds a layer, innermost first; the last is the root's.

    Examples:
        >>> list(holders_of("model.layers.3"))
        ['model.layers', 'model', '']
    """
    while name:
        name = name.rpartition(".")[0]
        yield name


class ModuleTree:
    """The modules below a root, by clean name.

    A wrapper and the module inside it share a clean name, and the name means the wrapper: hooks stand outside
    compiled graphs, checkpoints and adapters. A module used in several places is one layer and has its first name:
    hooked under each of its names it would be seen twice in one call.

    Args:
        root: the module that names are relative to; its name is ``""``.

    Attributes:
        root: the root.
        modules: modules by clean name, in the order of ``named_modules()``.
        aliases: for modules used in several places, the first name by each of the other names.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules: dict[str, nn.Module] = {}
        self.aliases: dict[str, str] = {}
        self._paths: dict[nn.Module, list[tuple[nn.Module, ...]]] = {}
        self._first_names: dict[nn.Module, str] = {}
        self._children: dict[str, list[str]] = {}
        self._walk(root, "", "", (root,))

    def _walk(self, module: nn.Module, name: str, holder: str, path: tuple[nn.Module, ...]) -> None:
        first = self._first_names.setdefault(module, name)
        self._paths.setdefault(module, []).append(path)
        if first != name:
            self.aliases[name] = first
        elif name not in self.modules:
            self.modules[name] = module
            if name:
                self._children.setdefault(holder, []).append(name)
        children = module._modules
        if not children:
            return
        wraps, prefix = not _WRAPPER_NAMES.isdisjoint(children), f"{name}." if name else ""
        for segment, child in children.items():
            if child is None or child in path:
                continue
            if wraps and _is_wrapper_segment(segment, module):
                self._walk(child, name, holder, (*path, child))
            else:
                self._walk(child, prefix + segment, name, (*path, child))

    @cached_property
    def names(self) -> list[str]:
        """Clean names of all layers, without the root."""
        return [name for name in self.modules if name]

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each clean name in the model's order."""
        return {name: place for place, name in enumerate(self.modules)}

    @cached_property
    def _by_last_segment(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition(".")[2], []).append(name)
        return found

    def ending_in(self, segment: str) -> Sequence[str]:
        """Return the clean names whose last segment is this one, in the model's order."""
        return self._by_last_segment.get(segment, ())

    def first_names(self) -> ItemsView[nn.Module, str]:
        """Return every module with its first clean name, also those inside wrappers, which share a name with them."""
        return self._first_names.items()

    def ancestors(self, module: nn.Module) -> list[nn.Module]:
        """Return every module that holds ``module`` somewhere, innermost first, without ``module`` itself."""
        return list(dict.fromkeys(holder for use in self.uses(module) for holder in use))

    def uses(self, module: nn.Module) -> list[list[nn.Module]]:
        """Return, for each name of ``module``, the modules that hold it there, innermost first."""
        return [list(reversed(path[:-1])) for path in self._paths.get(module, ())]

    def path(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """Return the modules from the root to ``module``, both included, along its first name."""
        return self._paths[module][0]

    def children(self, name: str) -> list[str]:
        """Return the clean names of the direct children of the layer ``name``."""
        return list(self._children.get(name, ()))
