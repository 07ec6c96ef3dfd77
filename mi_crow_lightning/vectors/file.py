"""Steering vectors on disk: one safetensors file, a tensor ``(D,)`` under each layer's name.

Its metadata, all strings, hold ``format``, ``version``, ``layers`` (a JSON list: the order of the layers), ``origin``
(a JSON object: method, model, tokens, samples, metadata) and, where it was measured, ``quality`` (a JSON list of
objects, see `LayerQuality`). ``safetensors.torch.load_file`` reads it as a plain dictionary of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mi_crow_lightning._foreign_files import Damaged, from_json, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.store.safetensors_file import Header, opened, read_header
from mi_crow_lightning.vectors.origin import Origin
from mi_crow_lightning.vectors.quality import QualityTable

__all__ = ["content_of", "read", "write"]

_FORMAT = "mi-crow-lightning steering vector"
_VERSION = "1"


def write(path: Path, directions: Mapping[str, Tensor], origin: Origin, quality: QualityTable) -> None:
    """Write directions, their origin and their quality, whole or not at all.

    Raises:
        OSError: the file cannot be written; its earlier content is kept.
    """
    write_atomically(path, content_of(directions, origin, quality))


def content_of(directions: Mapping[str, Tensor], origin: Origin, quality: QualityTable) -> bytes:
    """Return the bytes of the file."""
    layers = json.dumps(list(directions), ensure_ascii=False)
    facts = {"format": _FORMAT, "version": _VERSION, "layers": layers, "origin": origin.to_text()}
    if quality:
        facts["quality"] = quality.to_text()
    return save(dict(directions), metadata=facts)


def read(path: Path) -> tuple[dict[str, Tensor], Origin, QualityTable]:
    """Read what `write` wrote: the directions in their order, their origin and their quality.

    Raises:
        FileNotFoundError: there is no such file.
        VectorFileError: it holds something else, is damaged, or was written by a later release.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no steering vector at {named(path)}: there is no such file")
    with one_error(path, VectorFileError):
        _refuse_gguf(path)
        header = read_header(path)
        _check_format(header)
        layers = _layers(header)
        origin = Origin.from_text(header.metadata.get("origin", ""))
        quality = QualityTable.from_text(header.metadata.get("quality", "[]"))
        with opened(path) as file:
            return {layer: file.get_tensor(layer) for layer in layers}, origin, quality


def _refuse_gguf(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            raise Damaged("is a GGUF file: read_control_vector reads those")


def _check_format(header: Header) -> None:
    facts, names = header.metadata, list(header.shapes)
    if facts.get("format") != _FORMAT:
        shown = shortened(", ".join(names[:4]))
        raise Damaged(
            f"is a safetensors file of {len(names)} tensors ({shown}, ...), not a steering vector: SteeringVector.save "
            f"writes {_FORMAT!r} into its metadata"
        )
    if facts.get("version") != _VERSION:
        raise Damaged(f"has version {facts.get('version')!r}, and this release reads version {_VERSION!r}")


def _layers(header: Header) -> list[str]:
    """Return the layers in their order: the names of all tensors. Each has the shape (D,)."""
    layers = from_json(header.metadata.get("layers", ""), "has a list of layers that")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise Damaged("has a list of layers that is not a list of names")
    if sorted(layers) != sorted(header.shapes):
        odd = sorted(set(layers) ^ set(header.shapes)) or "the same layers twice"
        raise Damaged(f"has other layers in its list than tensors: {shortened(str(odd))}")
    for layer, shape in header.shapes.items():
        if len(shape) != 1:
            raise Damaged(f"holds {shortened(repr(layer))} of shape {shortened(str(shape))}, and (D,) is needed")
    return layers
