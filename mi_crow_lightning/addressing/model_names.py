"""What models are called, and whether vectors were made from the model that they are used on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import PurePath

from torch import nn

from mi_crow_lightning.addressing.module_tree import unwrapped
from mi_crow_lightning.hooks.hook import Hook

__all__ = ["configured_names", "warn_of_another_model"]

_REVISION = re.compile(r"[0-9a-f]{40}")  # the folder of a download: any model's


def configured_names(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules in ``model`` that have a configuration, each with its ``name_or_path``, which may be empty."""
    for module in model.modules():
        name = getattr(getattr(module, "config", None), "name_or_path", None)
        if isinstance(name, str):
            yield module, name


def warn_of_another_model(hook: Hook, model: nn.Module) -> None:
    """Warn where a hook's vectors were made from a model of another name.

    Only ends of names count, so that a local copy is no other model, and only names that configurations have: a class's
    is that of many models. Where ``model`` holds several models, one of them with the name is enough.
    """
    made_from = {name for name in hook.vector_models if name}
    if not made_from:
        return
    names = {_end(name): name for _, name in configured_names(model) if name}
    classes = {type(unwrapped(module)).__name__ for module in model.modules()}
    for name in sorted(made_from - classes):
        unsure = not names or any(map(_REVISION.fullmatch, (_end(name), *names)))
        if not unsure and _end(name) not in names:
            warnings.warn(
                f"{hook!r}: its vector was made from model {name!r}, and this one is "
                f"{' and '.join(map(repr, names.values()))}. Was the one made from the other, as by fine-tuning? If "
                "not, the vector means nothing here: extract one from this model. If so, give dict(vector), which is "
                "not asked, or dict(vector.fitted_to(model, any_model=True)), which checks layers and widths too.",
                stacklevel=4,
            )


def _end(name: str) -> str:
    return PurePath(name).name.casefold()
