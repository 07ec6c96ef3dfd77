"""Adapters that can be switched off for the length of a block, as PEFT's: ``with model.disable_adapter(): ...``."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.errors import ReferenceMismatch

__all__ = ["adapted", "refuse_merged"]


def adapted(root: nn.Module) -> nn.Module | None:
    """Return the outermost module that offers ``disable_adapter()``; ``None`` if there is none.

    Examples:
        >>> adapted(nn.Linear(2, 2)) is None
        True
    """
    return next((module for module in root.modules() if callable(getattr(module, "disable_adapter", None))), None)


def refuse_merged(model: nn.Module) -> None:
    """Refuse adapters that were merged into the weights: PEFT would take them out again to switch them off.

    Raises:
        ReferenceMismatch: one is merged.
    """
    for name, module in model.named_modules():
        if getattr(module, "merged", False) is True:
            raise ReferenceMismatch(
                f"the adapter of {name!r} is merged into the weights, and switching it off would change them: call "
                "unmerge_adapter() first"
            )
