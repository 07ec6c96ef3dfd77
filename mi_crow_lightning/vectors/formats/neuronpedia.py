"""Vectors and features as Neuronpedia's API answers with them, in JSON.

``POST /api/vector/get`` answers ``{"vector": {...}}`` with ``modelId``, ``layer``, ``index``, ``vectorLabel``,
``hookName``, ``vector`` (a list of numbers) and ``vectorDefaultSteerStrength``; ``POST /api/vector/new`` has the names
``source``, ``label``, ``values`` and ``defaultSteerStrength`` for some of these; a feature has the first at its top.
``hookName`` is TransformerLens', mostly ``blocks.N.hook_resid_pre`` or ``blocks.N.hook_resid_post`` (read in
Neuronpedia's repository at ``ebb8426``, ``apps/webapp/app/api/vector`` and ``webapp-python-client/neuronpedia``).
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import is_finite
from mi_crow_lightning._foreign_files import Damaged, from_json, named, one_error
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors.formats.hook_points import layer_of
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["from_neuronpedia"]

_LONGEST_FILE = 2**26  # bytes: a vector may have 24,576 numbers there, and a feature many texts
_MOST_NUMBERS = 2**20
_FACTS: dict[
    str, tuple[type[str] | type[float], tuple[str, ...]]
] = {  # the fact of a vector, the kind of its value, and its names in the answers
    "neuronpedia_model": (str, ("modelId",)),
    "neuronpedia_source": (str, ("layer", "source")),
    "neuronpedia_index": (str, ("index",)),
    "label": (str, ("vectorLabel", "label")),
    "default_strength": (float, ("vectorDefaultSteerStrength", "defaultSteerStrength")),
}


def from_neuronpedia(answer: Mapping[str, Any] | str | PathLike[str], *, layer: str | None = None) -> SteeringVector:
    """Take a vector, or a feature with its vector, as Neuronpedia answers with it.

    Args:
        answer: the answer, or a file of JSON that holds it.
        layer: name of the layer whose output it belongs to; by default read from ``hookName``.

    Returns:
        One direction. The layer is named ``"block:N"``, see `SteeringVector.fitted_to`; what goes into block N comes
        out of block N - 1. The model's name there, the label and the strength are in ``metadata``.

    Raises:
        FileNotFoundError: there is no such file.
        VectorFileError: it holds something else, or its place in the model is not the output of a layer.

    Examples:
        >>> answer = {"modelId": "gpt2-small", "hookName": "blocks.6.hook_resid_pre", "vector": [3.0, 4.0]}
        >>> from_neuronpedia({"vector": answer})
        SteeringVector(neuronpedia, layer 'block:5', width 2, norm 5)
    """
    if isinstance(answer, Mapping):
        try:
            return _vector(answer, layer)
        except Exception as error:
            reason = shortened(message_of(error), 1000)
            raise VectorFileError(f"the answer of Neuronpedia {reason}") from error
    path = Path(answer)
    if not path.is_file():
        raise FileNotFoundError(f"no answer of Neuronpedia at {named(path)}: there is no such file")
    with one_error(path, VectorFileError):
        if (size := path.stat().st_size) > _LONGEST_FILE:
            raise Damaged(f"has {size} bytes, and of an answer at most {_LONGEST_FILE} are read")
        return _vector(from_json(path.read_bytes()), layer)


def _vector(read: Any, layer: str | None) -> SteeringVector:
    if isinstance(read, Mapping) and isinstance(read.get("vectors"), list):
        raise Damaged(f"holds a list of {len(read['vectors'])} vectors: give one of them, answer['vectors'][0]")
    found = read.get("vector") if isinstance(read, Mapping) and isinstance(read.get("vector"), Mapping) else read
    if not isinstance(found, Mapping):
        raise Damaged("does not hold a JSON object with a vector")
    numbers = _first(found, "vector", "values")
    if not isinstance(numbers, list) or not numbers:
        raise Damaged("has no list of numbers as vector: a feature has one only where its source says so")
    place = found.get("hookName")
    if place is not None and not isinstance(place, str):
        raise Damaged(f"has {shortened(repr(place))} as hookName, which must be a text")
    address = layer if layer is not None else layer_of(place)
    facts = {} if place is None else {"hook_name": place}
    return SteeringVector({address: _direction(numbers)}, method="neuronpedia", metadata=facts | _facts(found))


def _direction(numbers: list[Any]) -> Tensor:
    if len(numbers) > _MOST_NUMBERS:
        raise Damaged(f"has a vector of {len(numbers)} numbers, and at most {_MOST_NUMBERS} are read")
    if wrong := [one for one in numbers if not is_finite(one)]:
        raise Damaged(f"has {shortened(repr(wrong[0]))} in its vector, which must hold finite numbers")
    return torch.tensor([float(one) for one in numbers], dtype=torch.float64)  # (D,)


def _facts(found: Mapping[str, Any]) -> dict[str, str | float]:
    facts: dict[str, str | float] = {}
    for fact, (kind, names) in _FACTS.items():
        value = _first(found, *names)
        if value is None:
            continue
        if kind is float and is_finite(value):
            facts[fact] = float(value)
        elif kind is str and isinstance(value, str):
            facts[fact] = value
        else:
            raise Damaged(f"has {shortened(repr(value))} as {names[0]}, which must be a {kind.__name__}")
    return facts


def _first(found: Mapping[str, Any], *names: str) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)
