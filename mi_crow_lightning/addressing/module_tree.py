"""Names of layers: those of ``named_modules()`` without the prefixes that wrappers add.

``torch.compile``, FSDP, activation checkpointing, DDP, weight averaging, Fabric and PEFT wrap modules and add a
segment to their names. A user addresses layers by the names of the bare model, and reads these in tags.
"""

from __future__ import annotations

from torch import nn

__all__ = ["ModuleTree", "unwrapped"]

_WRAPPER_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# "module" and "model" are ordinary names too: they only mean a wrapper below these classes.
_WRAPPER_CLASSES = {
    "module": ("DistributedDataParallel", "DataParallel", "AveragedModel"),
    "base_model": ("PeftModel",),
    "model": ("BaseTuner",),
    "_forward_module": ("_FabricModule",),
    "_original_module": ("_FabricModule",),
}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside its wrappers."""
    for name, child in module.named_children():
        if _is_wrapper_segment(name, module):
            return unwrapped(child)
    return module


def _is_wrapper_segment(name: str, parent: nn.Module) -> bool:
    if name in _WRAPPER_SEGMENTS:
        return True
    classes = {cls.__name__ for cls in type(parent).__mro__}
    return not classes.isdisjoint(_WRAPPER_CLASSES.get(name, ()))


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
        self._walk(root, "", (root,))

    def _walk(self, module: nn.Module, name: str, path: tuple[nn.Module, ...]) -> None:
        self._paths.setdefault(module, []).append(path)
        first = self._first_names.setdefault(module, name)
        if first == name:
            if name and name not in self.modules:
                self._children.setdefault(name.rpartition(".")[0], []).append(name)
            self.modules.setdefault(name, module)
        else:
            self.aliases[name] = first
        for segment, child in module._modules.items():
            if child is None or child in path:
                continue
            if _is_wrapper_segment(segment, module):
                self._walk(child, name, (*path, child))
            else:
                self._walk(child, f"{name}.{segment}" if name else segment, (*path, child))

    @property
    def names(self) -> list[str]:
        """Clean names of all layers, without the root."""
        return [name for name in self.modules if name]

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
