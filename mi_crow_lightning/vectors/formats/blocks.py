"""Blocks by number: how other formats name a layer.

Without the model a number is not a name, so a direction that is read gets the address of the block, ``"block:12"`` or
``"block:12.mlp"``; ``SteeringVector.fitted_to(model)`` replaces addresses by the model's names. When a vector is
written, the number is taken from the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["address_of", "number_of", "numbers_of"]


def address_of(number: int, part: str = "") -> str:
    """Return the address of a layer of block ``number``.

    Examples:
        >>> address_of(12), address_of(12, "mlp")
        ('block:12', 'block:12.mlp')
    """
    return f"block:{number}.{part}" if part else f"block:{number}"


def number_of(layer: str) -> tuple[int, str]:
    """Return the block's number in a layer's name, and the part of the block; empty for the whole block.

    Raises:
        ValueError: the name has no number, or several.

    Examples:
        >>> number_of("model.layers.12"), number_of("transformer.h.3.mlp"), number_of("block:12")
        ((12, ''), (3, 'mlp'), (12, ''))
        >>> number_of("block:4.attn.head:3")
        (4, 'attn.head:3')
    """
    segments = re.split(r"[.]|(?<!\.head):", layer)
    places = [i for i, segment in enumerate(segments) if re.fullmatch(r"(layer_)?\d+", segment)]
    if len(places) != 1:
        raise ValueError(f"layer {layer!r} has {len(places)} numbers in its name: it needs one, the block's")
    return int(segments[places[0]].removeprefix("layer_")), ".".join(segments[places[0] + 1 :])


def numbers_of(layers: Iterable[str]) -> dict[str, int]:
    """Return the block numbers of layers that are whole blocks, each a different one.

    Raises:
        ValueError: a layer is a part of a block, has no number, or has the number of another.
    """
    numbers: dict[str, int] = {}
    taken = set[int]()
    for layer in layers:
        number, part = number_of(layer)
        if part:
            raise ValueError(f"layer {layer!r} is a part of block {number}, and this format holds directions of blocks")
        if number in taken:
            raise ValueError(f"two layers have the number {number}: {[*numbers, layer]}; choose some with only(...)")
        numbers[layer] = number
        taken.add(number)
    return numbers
