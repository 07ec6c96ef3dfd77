"""One walk of a model, for all hooks that are registered together."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.channels import Channels
from mi_crow_lightning.hooks.passes.layer_channels import Around, channels_of
from mi_crow_lightning.hooks.passes.neighbours import Once
from mi_crow_lightning.hooks.passes.queries import learned_queries

__all__ = ["Walk"]


class Walk:
    """A model's layers, and what is found out about them while hooks are registered.

    Args:
        root: the module that layer names are relative to.

    Attributes:
        tree: the layers.
        learned_queries: see ``queries.py``.
    """

    def __init__(self, root: nn.Module) -> None:
        self.tree = ModuleTree(root)
        self.learned_queries = Once(learned_queries)
        self._around = Around()

    def channels_of(self, path: tuple[nn.Module, ...], hook: Hook) -> Channels:
        """Return where the channels of a layer's activation are, for a hook."""
        return channels_of(path, hook.hook_type is HookType.PRE_FORWARD, hook.channels, self._around)
