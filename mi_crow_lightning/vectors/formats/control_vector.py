"""Control vectors of llama.cpp and repeng: GGUF files of architecture ``controlvector``.

A file holds one tensor ``direction.N`` (D,) float32 for each block, and the fields ``controlvector.model_hint``,
``controlvector.layer_count`` and, from some tools, ``controlvector.method``. ``N`` counts blocks from 0, and the
direction is added to the block's *output*: repeng numbers the model's layers so, and llama.cpp, which stores
``direction.N`` at ``N - 1`` and reads block ``i`` from ``i - 1``, comes to the same. llama.cpp refuses
``direction.0``; repeng writes and reads it.

Read in llama.cpp ``common/common.cpp`` (``common_control_vector_load_one``) and ``src/llama-adapter.cpp``
(``llama_adapter_cvec::apply``), in repeng 0.4.0 ``extract.py``, and in EasySteer at ``312c6d8``
``easysteer/steer/utils.py``, which has the same fields and ``direction.0`` too. repeng and EasySteer refuse a file
without a hint. This is the only module that knows the package gguf, which writes; it reads damaged files for ever, so
`gguf_file` reads.
"""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mi_crow_lightning._foreign_files import Damaged, named, one_error
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import VectorFileError, VectorMismatch
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.vectors.formats.blocks import address_of, numbers_of
from mi_crow_lightning.vectors.formats.gguf_file import GGUFHeader, read_header, read_vectors
from mi_crow_lightning.vectors.origin import Origin
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["read_control_vector", "write_control_vector"]

_ARCHITECTURE = "controlvector"
_NO_HINT = "unknown"  # as EasySteer says it
_ORIGIN = "mi_crow_lightning.origin"
_NAME = re.compile(r"direction\.(?P<number>[0-9]{1,9})")


def read_control_vector(path: str | PathLike[str]) -> SteeringVector:
    """Read a control vector's GGUF file.

    Args:
        path: the file.

    Returns:
        One direction for each block; the layers are named ``"block:N"``, see `SteeringVector.fitted_to`. The file's
        hint at the model is ``metadata["model_hint"]``. A file that `write_control_vector` wrote also holds the
        method, the tokens and the rest.

    Raises:
        FileNotFoundError: there is no such file.
        VectorFileError: it is not a GGUF file, is damaged, has another architecture, or holds a tensor that is not
            ``direction.N`` (D,) float32.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no control vector at {named(path)}: there is no such file")
    with one_error(path, VectorFileError), path.open("rb") as file:
        header = read_header(file)
        if (architecture := header.fields.get("general.architecture")) != _ARCHITECTURE:
            raise Damaged(
                f"has the architecture {shortened(repr(architecture))}, and a control vector has {_ARCHITECTURE!r}"
            )
        blocks = _blocks(header)
        directions = read_vectors(file, header)
        ordered = {address_of(number): directions[blocks[number]] for number in sorted(blocks)}
        return SteeringVector(ordered, **vars(_origin(header.fields)))


def write_control_vector(vector: SteeringVector, path: str | PathLike[str], *, model_hint: str | None = None) -> None:
    """Write a control vector's GGUF file, which llama.cpp and repeng read.

    Args:
        vector: its layers are whole blocks, whose numbers are read off their names, and all of one width.
        path: the file.
        model_hint: the architecture, as in the model's ``config.model_type``; the vector's ``model_hint`` or its
            model's name if left out, and ``"unknown"`` without either. llama.cpp does not read it, repeng warns when
            two vectors differ in it.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: a layer is not a block, or is block 0, which llama.cpp refuses.
        VectorMismatch: the layers differ in width.
    """
    gguf, numbers = _gguf(), numbers_of(vector)
    if first := [layer for layer, number in numbers.items() if number == 0]:
        others = ", ".join(repr(layer) for layer in vector if layer not in first)
        raise ValueError(
            f"llama.cpp refuses a direction for block 0, which {first[0]!r} is: leave it out, vector.only({others})"
        )
    if len(widths := {len(vector[layer]) for layer in vector}) > 1:
        raise VectorMismatch(f"a control vector has one width, and the layers have {sorted(widths)}")
    hint = model_hint if model_hint is not None else str(vector.metadata.get("model_hint", vector.model))
    hint = hint or _NO_HINT  # gguf leaves out an empty text
    with TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(whole := Path(folder, "whole.gguf"), _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", hint)
        if vector.method:
            writer.add_string(f"{_ARCHITECTURE}.method", vector.method)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vector))
        writer.add_string(_ORIGIN, vector.origin.to_text())
        for layer in vector:
            writer.add_tensor(f"direction.{numbers[layer]}", vector[layer].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomically(Path(path), whole.read_bytes())


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError("control vectors need the package gguf: pip install 'mi-crow-lightning[gguf]'") from error
    return gguf


def _blocks(header: GGUFHeader) -> dict[int, str]:
    """Return the name of each block's direction."""
    blocks: dict[int, str] = {}
    for tensor in header.tensors:
        if (name := _NAME.fullmatch(tensor.name)) is None:
            raise Damaged(f"holds a tensor {shortened(repr(tensor.name))}, which is not 'direction.N'")
        if (number := int(name["number"])) in blocks:
            raise Damaged(f"holds two directions for block {number}: {blocks[number]!r} and {tensor.name!r}")
        blocks[number] = tensor.name
    if not blocks:
        raise Damaged("holds no tensor 'direction.N'")
    return blocks


def _origin(fields: dict[str, Any]) -> Origin:
    hint = fields.get(f"{_ARCHITECTURE}.model_hint", "")
    hint = "" if hint == _NO_HINT else hint
    origin = Origin.from_text(fields[_ORIGIN]) if _ORIGIN in fields else Origin()
    method = origin.method or fields.get(f"{_ARCHITECTURE}.method", "")
    return replace(origin, method=method, metadata={**origin.metadata, "model_hint": hint})
