"""Control vectors of llama.cpp and repeng.

``repeng.gguf`` was written by repeng 0.4.0: ``ControlVector("llama", directions).export_gguf(path)`` with the
directions of `REPENG`.
"""

from __future__ import annotations

import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorFileError, VectorMismatch
from mi_crow_lightning.vectors import read_control_vector, write_control_vector
from tests.models import WIDTH, llama

REPENG = {block: np.arange(4, dtype=np.float32) + 10 * block for block in (3, 2, 1)}


def vector(*layers: str, width: int = 4, **facts: Any) -> SteeringVector:
    return SteeringVector({layer: torch.randn(width) for layer in layers}, **facts)


def write(path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector", **kinds: Any) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    for name, value in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kinds.get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_of_repeng() -> None:
    read = read_control_vector(Path(__file__).with_name("repeng.gguf"))
    assert list(read) == ["block:1", "block:2", "block:3"]  # in the order of the blocks
    for block, direction in REPENG.items():
        assert read[f"block:{block}"].tolist() == direction.tolist()
    assert dict(read.metadata) == {"model_hint": "llama"} and read.model == read.method == ""


def test_numbers_are_those_of_blocks_from_zero() -> None:
    # As repeng's layers and llama.cpp's graph count them: direction.1 is added to the output of the second block.
    model = llama()
    made = SteeringVector({name: torch.randn(WIDTH) for name in ("block:1", "block:2")}).fitted_to(model)
    assert made.layers == ("model.layers.1", "model.layers.2")


def test_written_and_read(tmp_path: Path) -> None:
    facts: dict[str, Any] = dict(
        method="pca", model="org/name", tokens="last", samples={"a": 3}, metadata={"note": "ü"}
    )
    made = vector("model.layers.10", "model.layers.2", **facts)
    write_control_vector(made, tmp_path / "new" / "joy.gguf", model_hint="llama")
    read = read_control_vector(str(tmp_path / "new" / "joy.gguf"))
    assert list(read) == ["block:2", "block:10"]
    assert all(torch.equal(read[f"block:{i}"], made[f"model.layers.{i}"]) for i in (2, 10))
    assert read.origin == made.with_origin(metadata={"note": "ü", "model_hint": "llama"}).origin
    write_control_vector(read, tmp_path / "again.gguf")
    assert read_control_vector(tmp_path / "again.gguf") == read


def test_what_llama_cpp_reads(tmp_path: Path) -> None:
    made = vector("model.layers.1", "model.layers.2", model="org/name", method="paired pca")
    write_control_vector(made, tmp_path / "joy.gguf")
    reader = gguf.GGUFReader(tmp_path / "joy.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert reader.get_field("controlvector.layer_count").types == [gguf.GGUFValueType.UINT32]
    assert reader.get_field("controlvector.model_hint").contents() == "org/name"
    assert reader.get_field("controlvector.method").contents() == "paired pca"
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.shape.tolist() == [4]


def as_llama_cpp_reads(content: bytes) -> tuple[dict[str, tuple[int, Any]], dict[int, list[float]]]:
    """Fields with their kinds, and directions by block, from the bytes alone.

    llama.cpp takes tensors ``direction.N`` with N from 1, F32 and of one dimension, each as wide as the others.
    """
    place = 0

    def take(code: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{code}", content, place)
        place += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        return str(take(f"{take('Q')}s").decode())

    assert take("4s") == b"GGUF" and take("I") == 3
    tensors, count = take("Q"), take("Q")
    fields = {}
    for _ in range(count):
        name, kind = text(), take("I")
        fields[name] = kind, text() if kind == 8 else take({4: "I"}[kind])
    headers = []
    for _ in range(tensors):
        name, dimensions = text(), take("I")
        prefix, _, number = name.partition(".")
        assert prefix == "direction" and int(number) > 0 and dimensions == 1
        headers.append((int(number), take("Q"), take("I"), take("Q")))
    start = place + -place % 32
    assert {kind for _, _, kind, _ in headers} == {0} and len({width for _, width, _, _ in headers}) == 1
    return fields, {
        number: list(struct.unpack_from(f"<{width}f", content, start + offset)) for number, width, _, offset in headers
    }


def test_the_bytes_are_as_llama_cpp_and_easysteer_have_them(tmp_path: Path) -> None:
    made = vector("model.layers.10", "model.layers.2", model="org/name", method="mean_difference")
    write_control_vector(made, tmp_path / "joy.gguf", model_hint="llama")
    fields, directions = as_llama_cpp_reads((tmp_path / "joy.gguf").read_bytes())
    assert directions == {number: made[f"model.layers.{number}"].tolist() for number in (10, 2)}
    assert fields["general.architecture"] == (8, "controlvector")
    assert fields["controlvector.model_hint"] == (8, "llama")  # EasySteer and repeng refuse a file without it
    assert fields["controlvector.method"] == (8, "mean_difference")  # which EasySteer keeps
    assert fields["controlvector.layer_count"] == (4, 2)
    known = {"general.architecture"} | {f"controlvector.{name}" for name in ("model_hint", "method", "layer_count")}
    # EasySteer takes each further field of this prefix for a number of its own.
    assert not {name for name in fields if name.startswith("controlvector.")} - known


def test_a_file_without_a_hint_and_a_method_has_the_field_that_others_need(tmp_path: Path) -> None:
    write_control_vector(vector("h.1"), tmp_path / "joy.gguf")
    fields, _ = as_llama_cpp_reads((tmp_path / "joy.gguf").read_bytes())
    assert fields["controlvector.model_hint"] == (8, "unknown") and "controlvector.method" not in fields


def test_a_file_as_easysteer_writes_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(path := tmp_path / "theirs.gguf", "controlvector")
    for name, value in {"model_hint": "qwen2", "method": "PCA"}.items():
        writer.add_string(f"controlvector.{name}", value)
    writer.add_uint32("controlvector.layer_count", 2)
    writer.add_float32("controlvector.explained_variance.0", 0.5)
    for number in (0, 1):  # blocks from 0, as here; theirs have one for block 0 too
        writer.add_tensor(f"direction.{number}", np.full(4, number + 1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_control_vector(path)
    assert {layer: read[layer].tolist() for layer in read} == {"block:0": [1.0] * 4, "block:1": [2.0] * 4}
    assert (read.method, read.metadata["model_hint"]) == ("PCA", "qwen2")


def test_the_method_that_another_tool_wrote_is_kept(tmp_path: Path) -> None:
    write_control_vector(vector("model.layers.1"), tmp_path / "none.gguf")
    assert read_control_vector(tmp_path / "none.gguf").method == ""
    writer = gguf.GGUFWriter(path := tmp_path / "theirs.gguf", "controlvector")
    writer.add_string("controlvector.method", "DiffMean")
    writer.add_tensor("direction.1", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_control_vector(path)
    assert read.method == "DiffMean"
    write_control_vector(read, tmp_path / "again.gguf")
    assert read_control_vector(tmp_path / "again.gguf").method == "DiffMean"


@pytest.mark.skipif(np.__version__ >= "2", reason="repeng 0.4.0 does not import with numpy 2")
def test_repeng_reads_and_writes_the_same(tmp_path: Path) -> None:
    repeng = pytest.importorskip("repeng")
    made = vector("model.layers.1", "model.layers.2")
    write_control_vector(made, tmp_path / "joy.gguf", model_hint="llama")
    theirs = repeng.ControlVector.import_gguf(tmp_path / "joy.gguf")
    assert theirs.model_type == "llama" and sorted(theirs.directions) == [1, 2]
    assert all((theirs.directions[i] == made[f"model.layers.{i}"].numpy()).all() for i in (1, 2))
    theirs.export_gguf(tmp_path / "theirs.gguf")
    ours = read_control_vector(tmp_path / "theirs.gguf")
    assert all(torch.equal(ours[f"block:{i}"], made[f"model.layers.{i}"]) for i in (1, 2))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("h.0", "h.1", "h.2"), r"refuses a direction for block 0, which 'h.0' is: .* vector.only\('h.1', 'h.2'\)"),
        (("h.1", "h.2.mlp"), "layer 'h.2.mlp' is a part of block 2, and this format holds directions of blocks"),
        (("embed",), "layer 'embed' has 0 numbers in its name: it needs one"),
        (("a.1.b.2",), "layer 'a.1.b.2' has 2 numbers"),
        (("encoder.1", "decoder.1"), r"two layers have the number 1: \['encoder.1', 'decoder.1'\]"),
    ],
)
def test_layers_that_are_no_blocks_are_refused(tmp_path: Path, layers: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_control_vector(vector(*layers), tmp_path / "joy.gguf")
    assert not list(tmp_path.iterdir())


def test_widths_that_differ_are_refused(tmp_path: Path) -> None:
    made = SteeringVector({"h.1": torch.ones(2), "h.2": torch.ones(3)})
    with pytest.raises(VectorMismatch, match=r"one width, and the layers have \[2, 3\]"):
        write_control_vector(made, tmp_path / "joy.gguf")


def test_block_0_of_repeng_is_read(tmp_path: Path) -> None:
    assert list(read_control_vector(write(tmp_path / "a", {"direction.0": np.ones(2, np.float32)}))) == ["block:0"]


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({}, {}, "holds no tensor 'direction.N'"),
        ({"weight": np.ones(2, np.float32)}, {}, "holds a tensor 'weight', which is not 'direction.N'"),
        ({"direction.x": np.ones(2, np.float32)}, {}, "holds a tensor 'direction.x', which is not 'direction.N'"),
        ({"direction.1": np.ones((2, 3), np.float32)}, {}, r"'direction.1', F32 of shape \(3, 2\): F32 \(D,\)"),
        ({"direction.1": np.ones(2, np.float16)}, {}, r"'direction.1', F16 of shape \(2,\)"),
        ({"direction.1": np.array([np.nan], np.float32)}, {}, "'block:1' holds 1 non-finite"),
        ({"direction.1": np.ones(2, np.float32)}, {"architecture": "llama"}, "architecture 'llama', and a control vec"),
    ],
)
def test_other_files_are_told(tmp_path: Path, tensors: Any, options: Any, message: str) -> None:
    with pytest.raises(VectorFileError, match=message):
        read_control_vector(write(tmp_path / "file.gguf", tensors, **options))


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    with pytest.raises(FileNotFoundError, match=r"no control vector at '.*file.gguf'"):
        read_control_vector(path)
    write_control_vector(vector("h.1", "h.2"), path)
    whole = path.read_bytes()
    cut = [whole[:size] for size in range(0, len(whole) - 16, 5)]  # the last 16 bytes only fill up
    flipped = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(0, 200, 3)]
    for content in cut:
        path.write_bytes(content)
        with pytest.raises(VectorFileError):
            read_control_vector(path)
    for content in flipped:  # some of it text, which may be any
        path.write_bytes(content)
        with suppress(VectorFileError):
            read_control_vector(path)
    path.write_bytes(b"safetensors or so")
    with pytest.raises(VectorFileError, match=r"file.gguf' is not a readable GGUF file: "):
        read_control_vector(path)


def test_without_gguf_vectors_are_read_and_the_extra_is_named_when_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"need the package gguf.* pip install 'mi-crow-lightning\[gguf\]'"):
        write_control_vector(vector("h.1"), tmp_path / "joy.gguf")
    assert read_control_vector(Path(__file__).with_name("repeng.gguf")).layers == ("block:1", "block:2", "block:3")
