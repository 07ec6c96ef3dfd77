"""Checks that a steering vector fits a model: its name, its layers, their widths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from torch import Tensor, nn

from mi_crow_lightning.addressing.model_names import configured_names
from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.addressing.signatures import Match, resolve
from mi_crow_lightning.addressing.widths import declared_width
from mi_crow_lightning.errors import LayerNotFound, VectorMismatch

__all__ = ["model_name", "names_in"]


def model_name(model: nn.Module) -> str:
    """Return the name of a model: the ``name_or_path`` of its configuration, else the name of its class.

    Only the last part of a path counts, so that the name is the same on another machine.

    Examples:
        >>> model_name(nn.Sequential(nn.Identity()))
        'Sequential'
    """
    for module, name in configured_names(model):
        return _without_folder(name) or type(unwrapped(module)).__name__
    return type(unwrapped(model)).__name__


def _without_folder(name: str) -> str:
    # A hub's ID is "owner/name"; a path is absolute, begins with a dot or has other parts.
    path = PurePath(name)
    is_id = len(path.parts) <= 2 and not path.is_absolute() and not name.startswith((".", "~"))
    return name if is_id else path.name


def names_in(vector: Mapping[str, Tensor], model: nn.Module, any_model: bool) -> dict[str, str]:
    """Return the name in ``model`` of each of the vector's layers.

    Raises:
        VectorMismatch: the model has another name, lacks a layer, or has one of another width.
    """
    wanted, given = getattr(vector, "model", ""), model_name(model)
    if wanted and wanted != given and not any_model:
        raise VectorMismatch(
            f"the vector was made from model {wanted!r}, and this one is {given!r}: extract a vector from this model, "
            "or give any_model=True if one model was made from the other"
        )
    tree = ModuleTree(model)
    matches = {layer: _match(tree, layer) for layer in vector}
    for layer, match in matches.items():
        width = declared_width(tree, match)
        if width is not None and width != len(vector[layer]):
            raise VectorMismatch(
                f"the direction of {layer!r} has {len(vector[layer])} features, and {match.name!r} of {given!r} "
                f"has {width}"
            )
    return {layer: match.name for layer, match in matches.items()}


def _match(tree: ModuleTree, layer: str) -> Match:
    try:
        matches = resolve(tree, layer)
    except LayerNotFound as error:
        inner = _without_leading_segments(tree, layer)
        if inner is None:
            raise VectorMismatch(f"the model has no layer for the vector's {layer!r}: {error}") from error
        matches = resolve(tree, inner)
    if len(matches) > 1:
        raise VectorMismatch(f"the vector's {layer!r} means {len(matches)} layers of the model: name one")
    return matches[0]


def _without_leading_segments(tree: ModuleTree, layer: str) -> str | None:
    """Return the longest end of ``layer`` that is a name in ``tree``: the vector's model was inside another module."""
    segments = layer.split(".")
    ends = (".".join(segments[i:]) for i in range(1, len(segments)))
    return next((end for end in ends if end.partition(".head:")[0] in tree.modules), None)
