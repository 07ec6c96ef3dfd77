"""The rows of a figure: layers in the model's order, each stack apart, with names that are no longer than they must."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any, NamedTuple

from mi_crow_lightning._arguments import did_you_mean
from mi_crow_lightning._shown import shown

__all__ = ["Stack", "chosen_layers", "layer_of", "stacks_of"]

_MOST_STACKS = 12
_MOST_LISTED = 12


class Stack(NamedTuple):
    """Layers that stand together.

    Attributes:
        title: what their names begin with; empty if they share nothing.
        layers: their names.
        labels: the rest of each name.
    """

    title: str
    layers: tuple[str, ...]
    labels: tuple[str, ...]


def stacks_of(layers: Sequence[str]) -> list[Stack]:
    """Return the layers by the stack that they are in: the name up to its first number, as in the tab in TensorBoard.

    Examples:
        >>> stacks_of(["encoder.block.0", "encoder.block.1", "decoder.block.0"])
        [Stack(title='encoder.block', layers=('encoder.block.0', 'encoder.block.1'), labels=('0', '1')),
         Stack(title='decoder.block', layers=('decoder.block.0',), labels=('0',))]
    """
    titles = list(dict.fromkeys(map(_stack_of, layers)))
    if 1 < len(titles) <= _MOST_STACKS:
        return [_named_stack(title, [layer for layer in layers if _stack_of(layer) == title]) for title in titles]
    cut = _shared_start(layers)
    title = layers[0][: max(0, cut - 1)] if layers else ""
    return [Stack(title, tuple(layers), tuple(layer[cut:] for layer in layers))]


def _named_stack(title: str, layers: Sequence[str]) -> Stack:
    cut = len(title) + 1 if title else 0
    return Stack(title or "other layers", tuple(layers), tuple(layer[cut:] for layer in layers))


def _stack_of(layer: str) -> str:
    parts = layer.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[:number]) if number is not None else ""


def _shared_start(names: Sequence[str]) -> int:
    """Return how many letters at the start all names share, in whole parts."""
    if len(names) < 2:
        return 0
    parts = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return sum(len(level[0]) + 1 for level in shared)


def chosen_layers(layers: Sequence[str], patterns: str | Iterable[str] | None) -> list[str]:
    """Return the layers that fit one of the patterns: names, or globs such as ``"*.mlp"``.

    Raises:
        TypeError: a pattern is not a string.
        ValueError: none fits.
    """
    if patterns is None:
        return list(layers)
    globs: list[Any] = [patterns] if not isinstance(patterns, Iterable) or isinstance(patterns, str) else list(patterns)
    if not all(isinstance(one, str) for one in globs):
        raise TypeError(f"layers={shown(patterns)} must be a name, a glob such as '*.mlp', or a list of these")
    found = [layer for layer in layers if any(fnmatchcase(layer, glob) for glob in globs)]
    if not found:
        raise ValueError(f"layers={shown(patterns)} fits no layer: {_listed(layers)}")
    return found


def layer_of(layers: Sequence[str], wanted: Any) -> str:
    """Return the layer that is meant: by its name, by the end of it, or by the number of a block.

    Args:
        layers: all there are.
        wanted: ``"model.layers.3"``, ``"layers.3"``, ``3`` or ``"block:3"``.

    Raises:
        TypeError: ``wanted`` is neither a name nor a number.
        ValueError: it means no layer, or several.

    Examples:
        >>> layer_of(["model.layers.2", "model.layers.3", "model.layers.3.mlp"], "block:3")
        'model.layers.3'
    """
    if isinstance(wanted, bool) or not isinstance(wanted, (str, int)):
        raise TypeError(f"layer={shown(wanted)} must be the name of a layer, or the number of a block")
    if wanted in layers:
        return str(wanted)
    block = re.fullmatch(r"(?:block:)?(\d+)", str(wanted))
    if block is not None:
        found = [layer for layer in layers if layer.removeprefix(_stack_of(layer)).lstrip(".") == block[1]]
    else:
        found = [layer for layer in layers if layer.endswith(f".{wanted}")]
    if len(found) == 1:
        return found[0]
    what = "means several layers" if found else "is not among the layers"
    guess = did_you_mean(wanted, layers) if not found else ""
    raise ValueError(f"layer={shown(wanted)} {what}: {_listed(found or layers)}{guess}")


def _listed(layers: Sequence[str]) -> str:
    more = len(layers) - _MOST_LISTED
    names = ", ".join(shown(layer, 80) for layer in layers[:_MOST_LISTED])
    return f"{names}, and {more} more" if more > 0 else names
