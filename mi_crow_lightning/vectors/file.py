"""Steering vectors on disk: one safetensors file, a tensor ``(D,)`` under each layer's name.

Its metadata, all strings, hold ``format``, ``version``, ``layers`` (a JSON list: the order of the layers) and
``origin`` (a JSON object: method, model, tokens, samples, metadata). ``safetensors.torch.load_file`` reads it as a
plain dictionary of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.vectors.origin import Origin

__all__ = ["damaged", "read", "write"]

_FORMAT = "mi-crow-lightning steering vector"
_VERSION = "1"


def write(path: Path, directions: Mapping[str, Tensor], origin: Origin) -> None:
    """Write directions and their origin, whole or not at all.

    Raises:
        OSError: the file cannot be written; its earlier content is kept.
    """
    layers = json.dumps(list(directions), ensure_ascii=False)
    facts = {"format": _FORMAT, "version": _VERSION, "layers": layers, "origin": origin.to_text()}
    write_atomically(path, save(dict(directions), metadata=facts))


def read(path: Path) -> tuple[dict[str, Tensor], Origin]:
    """Read what `write` wrote: the directions in their order, and their origin.

    Raises:
        FileNotFoundError: there is no such file.
        VectorFileError: it holds something else, is damaged, or was written by a later release.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no steering vector at {str(path)!r}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise VectorFileError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    _check_format(path, facts, list(tensors))
    try:
        layers, origin = json.loads(facts["layers"]), Origin.from_text(facts["origin"])
        directions = {layer: tensors.pop(layer) for layer in layers}
        if tensors:
            raise ValueError(f"the tensors {sorted(tensors)} are not in the list of layers")
        return directions, origin
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> VectorFileError:
    """Build the error for a file of the right format whose content cannot be used; the caller raises it."""
    return VectorFileError(f"{str(path)!r} is damaged: {error!r}")


def _check_format(path: Path, facts: dict[str, str], names: list[str]) -> None:
    if facts.get("format") != _FORMAT:
        raise VectorFileError(
            f"{str(path)!r} is a safetensors file of {len(names)} tensors ({', '.join(names[:4])}, ...), not a "
            f"steering vector: SteeringVector.save writes {_FORMAT!r} into its metadata"
        )
    if facts.get("version") != _VERSION:
        raise VectorFileError(
            f"{str(path)!r} has version {facts.get('version')!r}, and this release reads version {_VERSION!r}"
        )
