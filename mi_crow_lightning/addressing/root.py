"""The module that layer names are relative to."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["find_root"]


def find_root(model: nn.Module, root: str | None) -> nn.Module:
    """Return the module that layer names are relative to.

    Args:
        model: the LightningModule, or the model of another Trainer.
        root: the name of a module in it; ``None`` for the model.

    Raises:
        LayerNotFound: ``root`` is not a module of ``model``.
    """
    if not root:
        return model
    tree = ModuleTree(model)
    if root not in tree.modules:
        raise LayerNotFound(
            f"root={root!r} is not a module of {type(model).__name__}; its children are: "
            f"{', '.join(tree.children('')) or 'none'}"
        )
    return tree.modules[root]
