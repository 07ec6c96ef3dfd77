"""References on disk: one safetensors file, with five tensors for each layer, and the matrices of the sketches.

Its metadata, all strings, hold ``format``, ``version``, ``layers`` (a JSON list) and ``facts`` (a JSON object). The
tensors of layer ``i`` are ``i.keys``, ``i.ids``, ``i.norms``, ``i.values`` and ``i.indices``, and the matrix for layers
of width ``D`` is ``signs.D``, so that no later version of torch needs to draw the same random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mi_crow_lightning._foreign_files import Damaged, check_name, from_json, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import ReferenceFileError
from mi_crow_lightning.references.sketches import Sketches
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.store.safetensors_file import Header, opened, read_header

__all__ = ["read", "write"]

_FORMAT = "mi-crow-lightning drift reference"
_VERSION = "1"
_MOST_NUMBERS = 2**30  # in a file

Contents = tuple[dict[str, Sketches], dict[int, Tensor], dict[str, Any]]


def write(path: Path, layers: Mapping[str, Sketches], matrices: Mapping[int, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a reference, whole or not at all.

    Raises:
        OSError: the file cannot be written; its earlier content is kept.
    """
    tensors = {f"signs.{width}": matrix.to(torch.int8).contiguous() for width, matrix in matrices.items()}
    for index, sketches in enumerate(layers.values()):
        tensors.update({f"{index}.{name}": part.contiguous() for name, part in sketches._asdict().items()})
    names = json.dumps(list(layers), ensure_ascii=False)
    metadata = {"format": _FORMAT, "version": _VERSION, "layers": names, "facts": json.dumps(dict(facts))}
    write_atomically(path, save(tensors, metadata=metadata))


def read(path: Path) -> Contents:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ReferenceFileError: it holds something else, is damaged, or was written by a later release.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no drift reference at {named(path)}: there is no such file")
    with one_error(path, ReferenceFileError):
        header = read_header(path)
        _check_format(header)
        layers = _layers(header)
        facts = from_json(header.metadata.get("facts", ""), "has facts that")
        if not isinstance(facts, dict):
            raise Damaged("has facts that are not a JSON object")
        _check_size(header)
        with opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in header.shapes}
        matrices = dict(_matrices(tensors))
        return {layer: _sketches(tensors, index) for index, layer in enumerate(layers)}, matrices, facts


def _check_format(header: Header) -> None:
    if header.metadata.get("format") != _FORMAT:
        raise Damaged(
            f"is not a drift reference: DriftReference.save writes {_FORMAT!r} into the metadata of its files"
        )
    if header.metadata.get("version") != _VERSION:
        version = shortened(repr(header.metadata.get("version")))
        raise Damaged(f"has version {version}, and this release reads version {_VERSION!r}")


def _layers(header: Header) -> list[str]:
    layers = from_json(header.metadata.get("layers", ""), "has a list of layers that")
    if not isinstance(layers, list) or len({check_name("layer", layer) for layer in layers}) != len(layers):
        raise Damaged("has no list of layers, each named once")
    wanted = {f"{index}.{name}" for index in range(len(layers)) for name in Sketches._fields}
    odd = wanted ^ {name for name in header.shapes if not name.startswith("signs.")}
    if odd:
        raise Damaged(f"lacks tensors, or has others: {shortened(str(sorted(odd)))}")
    return layers


def _check_size(header: Header) -> None:
    """Refuse sizes before anything is read."""
    for name, shape in header.shapes.items():
        dims = {"values": 2, "indices": 2}.get(name.partition(".")[2], 2 if name.startswith("signs.") else 1)
        count = 1
        for size in shape:
            count *= size
        if len(shape) != dims or count > _MOST_NUMBERS:
            raise Damaged(f"holds {shortened(repr(name))} of shape {shortened(str(shape))}")


def _matrices(tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    for name, matrix in tensors.items():
        kind, _, width = name.partition(".")
        if kind == "signs":
            if not width.isdecimal() or int(width) != len(matrix) or matrix.dtype != torch.int8:
                raise Damaged(f"holds {shortened(repr(name))} of {matrix.dtype} and shape {tuple(matrix.shape)}")
            yield int(width), matrix.float()


def _sketches(tensors: Mapping[str, Tensor], index: int) -> Sketches:
    found = Sketches(*(tensors[f"{index}.{name}"] for name in Sketches._fields))
    whole = all(part.dtype == torch.int64 for part in (found.keys, found.ids, found.indices))
    real = found.norms.is_floating_point() and found.values.is_floating_point()
    if not whole or not real or len(set(map(len, found))) > 1:
        raise Damaged(f"holds sketches of layer {index} that do not fit one another")
    if (found.keys < 0).any() or (found.keys.diff() <= 0).any():
        raise Damaged(f"holds keys of layer {index} that are not in rising order")
    if found.indices.shape[1] and (found.indices.shape != found.values.shape or (found.indices < 0).any()):
        raise Damaged(f"holds indices of layer {index} that do not fit its log-probabilities")
    return found
