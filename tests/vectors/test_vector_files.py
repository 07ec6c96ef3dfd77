"""Vectors on disk: what was written is read; what is something else is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorFileError


def vector() -> SteeringVector:
    # Not in the order of their names, as safetensors would sort them.
    directions = {name: torch.randn(4) for name in ("h.10", "h.9", "größer")}
    facts: dict[str, Any] = dict(method="pca", model="org/ü", tokens="last", samples={"a": 1}, metadata={"f": 0.1})
    return SteeringVector(directions, **facts)


def test_written_and_read(tmp_path: Path) -> None:
    path, made = tmp_path / "new" / "joy.safetensors", vector()
    made.save(path)
    read = SteeringVector.load(str(path))
    assert read == made and read.layers == made.layers
    made.only("h.9").save(path)  # a second time
    assert SteeringVector.load(path).layers == ("h.9",)
    assert list(path.parent.iterdir()) == [path]


def test_plain_safetensors_reads_it(tmp_path: Path) -> None:
    path, made = tmp_path / "joy.safetensors", vector()
    made.save(path)
    plain = load_file(path)
    assert plain.keys() == made.keys() and all(torch.equal(plain[layer], made[layer]) for layer in made)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert all(isinstance(value, str) for value in facts.values())
    assert json.loads(facts["layers"]) == list(made)
    assert json.loads(facts["origin"])["samples"] == {"a": 1}


def test_files_that_are_something_else_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match=r"no steering vector at '.*file': there is no such file"):
        SteeringVector.load(path)
    with pytest.raises(FileNotFoundError):
        SteeringVector.load(tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(VectorFileError, match=r"is not a readable safetensors file"):
        SteeringVector.load(path)
    save_file({f"layer{i}": torch.ones(2) for i in range(9)}, path)
    with pytest.raises(VectorFileError, match=r"9 tensors \(layer0, layer1, .*, \.\.\.\), not a steering vector"):
        SteeringVector.load(path)


@pytest.mark.documents("reliability/a-vectors-file-is-cut-short-or-damaged")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, r"has version '2', and this release reads version '1'"),
        ({"origin": "{"}, "has an origin that is not JSON: Expecting property name"),
        ({"origin": "[]"}, r"has an origin that is not one: '\[\]'"),
        ({"origin": '{"colour": "red"}'}, "has an origin that is not one: .*colour"),
        ({"origin": '{"samples": {"a": 0.5}}'}, r"cannot be read: TypeError: samples\['a'\]=0.5"),
        ({"layers": '["h.7"]'}, "has other layers in its list than tensors: .*'h.7'"),
        ({"layers": "3"}, "has a list of layers that is not a list of names"),
        ({"layers": '["h.9", 1]'}, "has a list of layers that is not a list of names"),
        ({"layers": '{"h.10": 1, "h.9": 2, "größer": 3}'}, "has a list of layers that is not a list of names"),
        ({"layers": '["h.9"]'}, r"has other layers in its list than tensors: \['größer', 'h.10'\]"),
        ({"layers": '["h.9", "h.10", "größer", "h.9"]'}, "has other layers in its list than tensors: the same layers"),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, change: dict[str, str], message: str) -> None:
    path = tmp_path / "joy.safetensors"
    vector().save(path)
    with safe_open(path, framework="pt") as file:
        facts = {**file.metadata(), **change}
    save_file(load_file(path), path, metadata=facts)
    with pytest.raises(VectorFileError, match=message):
        SteeringVector.load(path)


@pytest.mark.documents("reliability/a-vectors-file-is-cut-short-or-damaged")
def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    vector().save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(VectorFileError):
            SteeringVector.load(path)


def test_a_control_vector_is_named_with_what_reads_it(tmp_path: Path) -> None:
    (path := tmp_path / "joy.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(VectorFileError, match=r"joy\.gguf' is a GGUF file: read_control_vector reads those"):
        SteeringVector.load(path)
