"""Objects of the package steering-vectors, taken and given without importing it.

Its ``SteeringVector`` has ``layer_activations``, a dictionary from a block's number to ``(D,)``, and ``layer_type``,
which part of the block it is for (read in steering-vectors 0.12.2, ``steering_vector.py``, ``layer_matching.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mi_crow_lightning.vectors.formats.blocks import address_of, number_of
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["from_steering_vectors", "to_steering_vectors"]

# Its layer types, and the part of a block that our addresses call so.
_PARTS = {
    "decoder_block": "",
    "self_attn": "attn",
    "mlp": "mlp",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}


def from_steering_vectors(vector: Any) -> SteeringVector:
    """Take a ``steering_vectors.SteeringVector``.

    Args:
        vector: any object with ``layer_activations`` and ``layer_type``.

    Returns:
        Its directions; the layers are named ``"block:N"``, ``"block:N.mlp"``, ..., see `SteeringVector.fitted_to`.

    Raises:
        TypeError: it lacks one of these.
        ValueError: the layer type is not known, or a direction is not ``(D,)``.

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> given = SimpleNamespace(layer_activations={3: torch.ones(2)}, layer_type="mlp")
        >>> from_steering_vectors(given)
        SteeringVector(steering-vectors, layer 'block:3.mlp', width 2, norm 1.414)
    """
    activations, kind = getattr(vector, "layer_activations", None), getattr(vector, "layer_type", None)
    if not isinstance(activations, Mapping) or not all(isinstance(number, int) for number in activations):
        raise TypeError(
            f"a {type(vector).__name__} has no layer_activations, a mapping from a block's number to a tensor (D,): "
            "give a steering_vectors.SteeringVector"
        )
    if kind not in _PARTS:
        raise ValueError(f"layer_type={kind!r} is not known: it must be one of {', '.join(map(repr, _PARTS))}")
    directions = {address_of(number, _PARTS[kind]): value for number, value in activations.items()}
    return SteeringVector(directions, method="steering-vectors")


def to_steering_vectors(vector: SteeringVector) -> dict[str, Any]:
    """Return the arguments of a ``steering_vectors.SteeringVector`` with these directions.

    ``steering_vectors.SteeringVector(**to_steering_vectors(vector))`` makes it.

    Raises:
        ValueError: the layers are not blocks, attentions or MLPs of blocks, all of one kind.

    Examples:
        >>> import torch
        >>> to_steering_vectors(SteeringVector({"model.layers.3": torch.ones(2)}))
        {'layer_activations': {3: tensor([1., 1.])}, 'layer_type': 'decoder_block'}
    """
    places = {layer: number_of(layer) for layer in vector}
    kinds = {_kind(layer, part) for layer, (_, part) in places.items()}
    if len(kinds) > 1:
        raise ValueError(f"the layers are of several kinds, {sorted(kinds)}: choose those of one with only(...)")
    return {"layer_activations": {places[layer][0]: vector[layer] for layer in vector}, "layer_type": kinds.pop()}


def _kind(layer: str, part: str) -> str:
    names = {**{own: kind for kind, own in _PARTS.items()}, "self_attn": "self_attn"}
    if part not in names:
        raise ValueError(f"layer {layer!r}: {part!r} of a block is not one of {', '.join(filter(None, names))}")
    return names[part]
