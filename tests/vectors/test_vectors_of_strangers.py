"""Files that claim to be steering vectors: a vector that can be used and saved, or `VectorFileError`, soon."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from mi_crow_lightning import SteeringVector
from mi_crow_lightning._foreign_files import LONGEST_NAME
from mi_crow_lightning.errors import VectorFileError
from tests.strangers import TEXTS, as_json, changed, damaged, outcome

pytestmark = pytest.mark.faults

FACTS = {
    "format": "mi-crow-lightning steering vector",
    "version": "1",
    "layers": '["h.1", "h.0"]',
    "origin": json.dumps({"method": "pca", "samples": {"a": 1}, "metadata": {"f": 0.5}}),
}
TENSORS = {"h.0": torch.ones(4), "h.1": torch.zeros(2)}
WHOLE = save(TENSORS, metadata=FACTS)
HEADER: dict[str, Any] = json.loads(WHOLE[8 : 8 + int.from_bytes(WHOLE[:8], "little")])
DATA = WHOLE[8 + int.from_bytes(WHOLE[:8], "little") :]


def read(folder: Path, content: bytes) -> Exception | SteeringVector:
    """What loading the content gives; what can be loaded can be shown, saved and loaded again."""
    (file := folder / "v.safetensors").write_bytes(content)
    result = outcome(lambda: SteeringVector.load(file), file, VectorFileError)
    if isinstance(result, SteeringVector):
        result.save(folder / "again.safetensors")
        again = SteeringVector.load(folder / "again.safetensors")
        assert repr(again).encode() and again.layers == result.layers and repr(again.origin) == repr(result.origin)
    return result


def with_header(header: str, data: bytes = DATA) -> bytes:
    return (
        struct.pack("<Q", len(header.encode("utf-8", "surrogatepass"))) + header.encode("utf-8", "surrogatepass") + data
    )


def with_facts(**facts: str) -> bytes:
    return save(TENSORS, metadata=FACTS | facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.mark.fuzz
@pytest.mark.documents("reliability/bytes-of-a-vectors-file-are-damaged")
@settings(max_examples=200)
@given(damaged(WHOLE))
def test_damaged_bytes(folder: Path, content: bytes) -> None:
    read(folder, content)


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-field-of-a-vectors-file-holds-something-else")
@settings(max_examples=150)
@given(st.data())
def test_a_field_that_holds_something_else(folder: Path, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(list(FACTS)))
    value = json.loads(FACTS[field]) if field in ("layers", "origin") else FACTS[field]
    text = data.draw(changed(value).map(as_json) | TEXTS)
    read(folder, with_header(json.dumps(HEADER | {"__metadata__": FACTS | {field: text}})))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/the-header-of-a-vectors-file-is-not-true")
@settings(max_examples=150)
@given(changed(HEADER))
def test_a_header_that_is_not_true(folder: Path, header: Any) -> None:
    read(folder, with_header(as_json(header)))


@pytest.mark.documents("reliability/the-header-of-a-vectors-file-is-not-true")
@pytest.mark.parametrize("claim", [0, 1, 2000, 2**27, 2**31, 2**40, 2**63, 2**64 - 1])
def test_headers_that_claim_to_be_large(tmp_path: Path, claim: int) -> None:
    message = str(read(tmp_path, struct.pack("<Q", claim) + WHOLE[8:]))
    assert f"is not a readable safetensors file: a header of {claim} bytes, and {len(WHOLE) - 8} bytes" in message


@pytest.mark.documents("reliability/the-header-of-a-vectors-file-is-not-true")
@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("[" * 5000, "its header is nested deeper than 100 levels"),
        ("[1]", "its header is not a JSON object"),
        ({"__metadata__": ["format"]}, "its header is not a JSON object"),
        ({"__metadata__": {**FACTS, "note": 1}}, "its metadata hold something other than texts"),
        ({"h.0": 3}, "'h.0' has no shape in its header"),
        ({"h.0": {"dtype": "F32", "shape": 4}}, "'h.0' has no shape in its header"),
        ({"h.0": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}, "'h.0' has no shape in its header"),
        ({"h.0": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 16]}}, "is not a readable safetensors file"),
        ({"h.0": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, "is not a readable safetensors file"),
        ({"h.0": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}}, "is not a readable safetensors file"),
    ],
)
def test_headers_of_another_form(tmp_path: Path, header: Any, says: str) -> None:
    assert says in str(read(tmp_path, with_header(header if isinstance(header, str) else json.dumps(HEADER | header))))


@pytest.mark.documents("reliability/a-field-of-a-vectors-file-is-nested-without-end")
@pytest.mark.parametrize("field", ["layers", "origin"])
@pytest.mark.parametrize("deep", ["[" * 5000, '{"a":' * 5000, "[" * 101 + "]" * 101, '["h.0",' * 900])
def test_fields_that_are_nested_deep(tmp_path: Path, field: str, deep: str) -> None:
    assert "is nested deeper than 100 levels" in str(read(tmp_path, with_facts(**{field: deep})))


@pytest.mark.documents("reliability/a-file-holds-another-kind-of-tensors-such-as-a-model")
def test_a_model_of_64_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    """A sparse file: it takes a few kB on the disk, and whoever reads its tensors takes 64 GB of memory."""
    size = 2**36
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    (file := tmp_path / "v.safetensors").write_bytes(with_header(header, b""))
    os.truncate(file, file.stat().st_size + size)
    message = str(outcome(lambda: SteeringVector.load(file), file, VectorFileError))
    assert "is a safetensors file of 1 tensors (w, ...), not a steering vector" in message


@pytest.mark.documents("reliability/a-file-has-more-tensors-or-longer-names-than-are-read")
def test_many_tensors_and_long_names(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({"__metadata__": FACTS} | {str(i): empty for i in range(100_001)})
    assert "holds 100001 tensors, and at most 100000 are read" in str(read(tmp_path, with_header(many, b"")))
    long = "h" * (LONGEST_NAME + 1)
    assert "a name of 1001 characters" in str(read(tmp_path, save({long: torch.ones(2)}, metadata=FACTS)))
    with pytest.raises(ValueError, match=r"may have 1000 characters, and 'h*'\.\.\. has 1001"):
        SteeringVector({long: torch.ones(2)})  # so that what can be saved can be loaded
    longest = SteeringVector({long[1:]: torch.ones(2)})
    longest.save(tmp_path / "v")
    assert SteeringVector.load(tmp_path / "v") == longest


@pytest.mark.documents("reliability/a-vectors-tensors-are-not-directions")
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(2, 2), r"holds 'h.0' of shape (2, 2), and (D,) is needed"),
        (torch.ones(()), "holds 'h.0' of shape (), and (D,) is needed"),
        (torch.ones(0), "must be a float tensor (D,), not torch.float32 of shape (0,)"),
        (torch.ones(2, dtype=torch.int64), "must be a float tensor (D,), not torch.int64"),
        (torch.tensor([1.0, float("nan")]), "holds 1 non-finite"),
    ],
)
def test_tensors_that_are_not_directions(tmp_path: Path, value: torch.Tensor, says: str) -> None:
    save_file({"h.0": value}, tmp_path / "file", metadata=FACTS | {"layers": '["h.0"]'})
    assert says in str(read(tmp_path, (tmp_path / "file").read_bytes()))


@pytest.mark.documents("reliability/a-field-of-a-vectors-file-holds-something-else")
def test_texts_that_no_file_can_hold(tmp_path: Path) -> None:
    """What JSON can say and UTF-8 cannot would be read, and could not be saved again."""
    for origin in ({"method": "\ud800"}, {"metadata": {"\ud800": 1}}, {"metadata": {"a": "\ud800"}}):
        assert "half of a surrogate pair" in str(read(tmp_path, with_facts(origin=json.dumps(origin))))
