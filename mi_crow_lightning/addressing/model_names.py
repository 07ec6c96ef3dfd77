"""Names of models, and whether vectors were made from the model that they are used on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from torch import nn

from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.module_tree import unwrapped
from mi_crow_lightning.warnings import DoubtfulVectorWarning

__all__ = ["configured_names", "warn_of_another_model"]

_REVISION = re.compile(r"[0-9a-f]{40}")  # the folder of a download: any model's


def configured_names(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules in ``model`` that have a configuration, each with its ``name_or_path``, which may be empty."""
    for module in model.modules():
        name = getattr(getattr(module, "config", None), "name_or_path", None)
        if isinstance(name, str):
            yield module, name


def warn_of_another_model(holder: object, made_from: Iterable[str], model: nn.Module) -> None:
    """Warn where vectors were made from a model of another name.

    Only the ends of names count, so that a local copy is the same model, and only names that configurations have: many
    models share the name of a class. Where ``model`` holds several models, one of them with the name is enough.

    Args:
        holder: what holds the vectors, for the message.
        made_from: the names of the models that they were made from; an empty one is not known.
        model: the model that they are used on.
    """
    known = {name for name in made_from if name}
    if not known:
        return
    names = {_end(name): name for _, name in configured_names(model) if name}
    classes = {type(unwrapped(module)).__name__ for module in model.modules()}
    for name in sorted(known - classes):
        unsure = not names or any(map(_REVISION.fullmatch, (_end(name), *names)))
        if not unsure and _end(name) not in names:
            warn(
                f"{holder!r}: its vector was made from model {name!r}, and this one is "
                f"{' and '.join(map(repr, names.values()))}. Was one model made from the other, as by fine-tuning? If "
                "not, the vector means nothing here: extract one from this model. If so, give dict(vector), which "
                "names no model, or dict(vector.fitted_to(model, any_model=True)), which also checks layers and "
                "widths.",
                DoubtfulVectorWarning,
                stacklevel=4,
            )


def _end(name: str) -> str:
    return PurePath(name).name.casefold()
