"""The names by which a reference knows the model that it is of."""

from __future__ import annotations

from torch import nn

from mi_crow_lightning.addressing.model_names import configured_names
from mi_crow_lightning.addressing.module_tree import unwrapped

__all__ = ["names_of"]


def names_of(model: nn.Module) -> list[str]:
    """Return the names of a model: the ends of its configurations' ``name_or_path``, then classes; at least one.

    The first is the model's own name. A model of PEFT also has the names of the model inside it.

    Examples:
        >>> names_of(nn.Sequential(nn.Identity()))
        ['Sequential']
    """
    found = [(name.rstrip("/").rpartition("/")[2], type(unwrapped(one))) for one, name in configured_names(model)]
    classes = sorted((kind for _, kind in found), key=lambda kind: kind.__module__.startswith("peft."))
    named = [*(name for name, _ in found if name), *(kind.__name__ for kind in classes)]
    return list(dict.fromkeys(named)) or [type(unwrapped(model)).__name__]
