"""GGUF files that claim more than they hold, or other things: `VectorFileError`, soon. What gguf writes is read."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors import read_control_vector, write_control_vector
from mi_crow_lightning.vectors.formats.blocks import numbers_of
from tests.strangers import CLAIMS, ODD, TEXTS, as_json, damaged, outcome

pytestmark = pytest.mark.faults

UINT8, UINT32, FLOAT32, TEXT, ARRAY = 0, 4, 6, 8, 9
Tensor = tuple[str, tuple[int, ...], int, int]  # name, shape, kind, offset
ONE: list[Tensor] = [("direction.1", (4,), 0, 0)]


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data) if length is None else length) + data


def field(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


CONTROL_VECTOR = field("general.architecture", TEXT, text("controlvector"))


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    fields: list[bytes],
    tensors: list[Tensor] = ONE,
    data: bytes = b"\0\0\x80\x3f" * 8,
    *,
    claimed: tuple[int, int] | None = None,
    version: int = 3,
) -> bytes:
    """A file; ``claimed`` are other numbers of tensors and fields than there are."""
    header = b"GGUF" + struct.pack("<IQQ", version, *(claimed or (len(tensors), len(fields))))
    header += b"".join(fields) + b"".join(tensor(*one) for one in tensors)
    return header + b"\0" * (-len(header) % 32) + data


def read(folder: Path, content: bytes) -> Exception | SteeringVector:
    """What reading the content gives; what can be read can be written and read again, but for block 0."""
    (file := folder / "v.gguf").write_bytes(content)
    result = outcome(lambda: read_control_vector(file), file, VectorFileError)
    widths = {len(result[layer]) for layer in result} if isinstance(result, SteeringVector) else set()
    if isinstance(result, SteeringVector) and len(widths) == 1 and "block:0" not in result:
        write_control_vector(result, folder / "again.gguf")
        again = read_control_vector(folder / "again.gguf")
        assert again.layers == result.layers and repr(again.origin) == repr(result.origin)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.mark.documents("reliability/bytes-of-a-gguf-file-are-damaged")
def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    """The base of what follows: each change to it is the one thing that is wrong."""
    vector = read(tmp_path, file_of([CONTROL_VECTOR]))
    assert isinstance(vector, SteeringVector) and vector["block:1"].tolist() == [1.0] * 4


@pytest.mark.documents("reliability/a-count-length-or-shape-in-a-gguf-file-is-larger-than-the-file")
@pytest.mark.parametrize("claim", [2**20, 2**31, 2**40, 2**61, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (ARRAY, lambda n: array(UINT8, n)),
        (ARRAY, lambda n: array(UINT32, n)),
        (ARRAY, lambda n: array(TEXT, n)),
        (ARRAY, lambda n: array(TEXT, 2, text("x") + text("", n))),
        (ARRAY, lambda n: array(ARRAY, n, array(UINT8, n))),
        (TEXT, lambda n: text("", n)),
    ],
    ids=["bytes", "numbers", "texts", "a text", "arrays", "text"],
)
def test_values_that_claim_to_be_large(tmp_path: Path, kind: int, form: Any, claim: int) -> None:
    """The first is the file of 166 bytes that was read without end."""
    assert isinstance(read(tmp_path, file_of([CONTROL_VECTOR, field("x", kind, form(claim))])), VectorFileError)


@pytest.mark.documents("reliability/a-count-length-or-shape-in-a-gguf-file-is-larger-than-the-file")
@pytest.mark.parametrize("claim", [5, 2**31, 2**40, 2**63, 2**64 - 1])
def test_more_fields_or_tensors_than_the_file_has(tmp_path: Path, claim: int) -> None:
    for claimed in ((1, claim), (claim, 1)):
        assert isinstance(read(tmp_path, file_of([CONTROL_VECTOR], claimed=claimed)), VectorFileError)


@pytest.mark.documents("reliability/a-file-has-more-tensors-or-longer-names-than-are-read")
def test_more_tensors_than_are_read(tmp_path: Path) -> None:
    content = file_of([CONTROL_VECTOR], data=b"\0" * 24 * 100_001, claimed=(100_001, 1))
    assert "holds 100001 tensors, and at most 100000 are read" in str(read(tmp_path, content))
    assert "has a text of 1001 bytes, where at most 1000" in str(
        read(tmp_path, file_of([CONTROL_VECTOR], [("d" * 1001, (4,), 0, 0)]))
    )


@pytest.mark.documents("reliability/a-count-length-or-shape-in-a-gguf-file-is-larger-than-the-file")
@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([("direction.1", (9,), 0, 0)], "'direction.1' of shape (9,), and ends before that"),
        ([("direction.1", (2**62,), 0, 0)], "and ends before that"),
        ([("direction.1", (4,), 0, 20)], "and ends before that"),
        ([("direction.1", (4,), 0, 2**64 - 8)], "and ends before that"),
        ([("direction.1", (2**33, 2**33), 0, 0)], "F32 of shape (8589934592, 8589934592): F32 (D,) is needed"),
        ([("direction.1", (1,) * 5000, 0, 0)], "of 5000 dimensions, and at most 4 are read"),
        ([("direction.1", (0,), 0, 0)], "F32 of shape (0,): F32 (D,) is needed"),
        ([("direction.1", (), 0, 0)], "F32 of shape (): F32 (D,) is needed"),
        ([("direction.1", (4,), 99, 0)], "kind 99 of shape (4,): F32 (D,) is needed"),
        ([(f"direction.{i}", (8,), 0, 0) for i in (1, 2)], "'direction.2' of shape (8,), and ends before that"),
    ],
)
def test_tensors_that_are_not_there(tmp_path: Path, tensors: list[Tensor], says: str) -> None:
    """The last: two that lie in one place. A thousand of them would take a thousand times the file's size."""
    assert says in str(read(tmp_path, file_of([CONTROL_VECTOR], tensors)))


@pytest.mark.documents("reliability/two-tensors-of-a-gguf-file-are-for-one-block")
@pytest.mark.parametrize("other", ["direction.01", "direction.0001", "direction.1"])
def test_two_spellings_of_one_direction(tmp_path: Path, other: str) -> None:
    tensors = [("direction.1", (4,), 0, 0), (other, (4,), 0, 16)]
    message = str(read(tmp_path, file_of([CONTROL_VECTOR], tensors)))
    assert "holds two" in message and "direction.1'" in message and other in message


@pytest.mark.documents("reliability/a-tensor-of-a-gguf-file-is-not-a-direction")
@pytest.mark.parametrize(
    "name", ["direction.\u0661", "direction.1 ", "direction.-1", "direction." + "1" * 10, "Direction.1"]
)
def test_names_that_are_not_directions(tmp_path: Path, name: str) -> None:
    message = str(read(tmp_path, file_of([CONTROL_VECTOR], [(name, (4,), 0, 0)])))
    assert f"holds a tensor {name!r}, which is not 'direction.N'" in message


@pytest.mark.documents("reliability/a-field-of-a-gguf-file-holds-something-else")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([CONTROL_VECTOR, CONTROL_VECTOR], "has two fields named 'general.architecture'"),
        ([field("general.architecture", UINT32, b"\1\0\0\0")], "has the architecture 1, and a control vector has"),
        ([field("general.architecture", ARRAY, array(TEXT, 1, text("controlvector")))], "has the architecture None"),
        ([field("general.architecture", TEXT, text("x" * 9000))], "has the architecture 'xxx"),
        ([field("general.alignment", UINT32, b"\0\0\0\0"), CONTROL_VECTOR], "has the alignment 0, and a power of two"),
        ([field("general.alignment", UINT32, b"\3\0\0\0"), CONTROL_VECTOR], "has the alignment 3, and a power of two"),
        ([field("general.alignment", TEXT, text("32")), CONTROL_VECTOR], "has the alignment '32', and a power of two"),
        ([field("general.alignment", UINT32, b"\0\0\0\x80"), CONTROL_VECTOR], "and ends before that"),
        ([CONTROL_VECTOR, field("x", 13, b"")], "a value of the kind 13 is not known there"),
        ([CONTROL_VECTOR, field("x", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"1")))], "a value of the kind 9 is not"),
        ([CONTROL_VECTOR, field("x" * 70_000, UINT8, b"1")], "has a text of 70000 bytes, where at most 65535"),
        ([CONTROL_VECTOR, field("x", TEXT, text(b"\xff"))], "cannot be read: UnicodeDecodeError"),
        ([CONTROL_VECTOR, field("mi_crow_lightning.origin", UINT32, b"\1\0\0\0")], "cannot be read"),
        (
            [CONTROL_VECTOR, field("mi_crow_lightning.origin", TEXT, text("[" * 5000))],
            "is nested deeper than 100 levels",
        ),
        ([CONTROL_VECTOR, field("controlvector.model_hint", ARRAY, array(UINT8, 1, b"1"))], "model_hint"),
        ([CONTROL_VECTOR, field("controlvector.method", ARRAY, array(UINT8, 1, b"1"))], "method=None must be a string"),
    ],
)
def test_fields_that_hold_something_else(tmp_path: Path, fields: list[bytes], says: str) -> None:
    assert says in str(read(tmp_path, file_of(fields)))


@pytest.mark.documents("reliability/bytes-of-a-gguf-file-are-damaged")
@pytest.mark.parametrize("version", [0, 1, 4, 2**16, 2**24, 2**32 - 1])
def test_other_versions(tmp_path: Path, version: int) -> None:
    assert "is a GGUF file of version" in str(read(tmp_path, file_of([CONTROL_VECTOR], version=version)))


@pytest.mark.documents("reliability/a-gguf-file-holds-a-model")
def test_a_model_is_refused_by_its_header(smollm2_file: Path) -> None:
    message = str(outcome(lambda: read_control_vector(smollm2_file), smollm2_file, VectorFileError))
    assert "has the architecture 'llama', and a control vector has 'controlvector'" in message


@pytest.mark.documents("reliability/a-count-length-or-shape-in-a-gguf-file-is-larger-than-the-file")
def test_time_is_linear_in_the_number_of_directions(tmp_path: Path) -> None:
    """Each of 50,000 directions was compared with all those before it."""
    many = [(f"direction.{i}", (1,), 0, 4 * i) for i in range(50_000)]
    (file := tmp_path / "v.gguf").write_bytes(file_of([CONTROL_VECTOR], many, b"\0\0\x80\x3f" * len(many)))
    vector = outcome(lambda: read_control_vector(file), file, VectorFileError)
    assert isinstance(vector, SteeringVector) and len(vector) == 50_000
    numbers = outcome(lambda: numbers_of(vector), file, VectorFileError)
    assert list(numbers.values()) == list(range(50_000))  # type: ignore[union-attr]


WHOLE = Path(__file__).with_name("repeng.gguf").read_bytes()


@pytest.mark.fuzz
@pytest.mark.documents("reliability/bytes-of-a-gguf-file-are-damaged")
@settings(max_examples=200)
@given(damaged(WHOLE))
def test_damaged_bytes(folder: Path, content: bytes) -> None:
    read(folder, content)


NAMES = st.sampled_from(["direction.1", "direction.2", "direction.02", "direction.0", "weight"]) | TEXTS
SIZES = st.sampled_from([1, 2, 4]) | st.sampled_from(CLAIMS).map(lambda size: size % 2**64)
ORIGINS = st.just({"method": "pca", "samples": {"a": 1}}) | st.dictionaries(TEXTS, ODD, max_size=2) | ODD


@st.composite
def made_up(draw: st.DrawFn) -> bytes:
    """Files with a valid frame: each part is right, or something else of its own kind."""
    fields = [field("general.architecture", TEXT, text(draw(st.just("controlvector") | TEXTS)))]
    if draw(st.booleans()):
        fields.append(field("mi_crow_lightning.origin", TEXT, text(as_json(draw(ORIGINS)))))
    if draw(st.booleans()):
        fields.append(field("controlvector.model_hint", TEXT, text(draw(TEXTS))))
    kinds = st.sampled_from([*range(14), 2**31])
    fields += draw(
        st.lists(
            st.builds(
                field, TEXTS, kinds, st.builds(array, kinds, SIZES, st.binary(max_size=24)) | st.binary(max_size=9)
            ),
            max_size=2,
        )
    )
    shapes = st.just((4,)) | st.lists(SIZES, max_size=3).map(tuple)
    tensors = draw(
        st.lists(st.tuples(NAMES, shapes, st.sampled_from([0, 0, 0, 1, 77]), SIZES | st.just(0)), max_size=3)
    )
    return file_of(fields, tensors, draw(st.binary(max_size=64)))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-field-of-a-gguf-file-holds-something-else")
@settings(max_examples=200)
@given(made_up())
def test_made_up_files(folder: Path, content: bytes) -> None:
    read(folder, content)


KINDS = {int: gguf.GGUFValueType.UINT16, str: gguf.GGUFValueType.STRING, list: gguf.GGUFValueType.ARRAY}


@pytest.mark.fuzz
@pytest.mark.documents("reliability/bytes-of-a-gguf-file-are-damaged")
@settings(max_examples=40)
@given(
    st.dictionaries(
        st.integers(0, 999), st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)
    ),
    st.sampled_from(list(gguf.GGUFEndian)),
    st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9) | st.text() | st.lists(st.text("ab"), min_size=1)),
    st.sampled_from([8, 32, 256]),
)
def test_what_gguf_writes_is_read_as_it_reads_it(
    vectors: dict[int, list[float]], order: gguf.GGUFEndian, others: dict[str, Any], alignment: int
) -> None:
    """The reference is gguf's reader, which is fine with whole files."""
    with tempfile.TemporaryDirectory() as name:
        writer = gguf.GGUFWriter(path := Path(name, "v.gguf"), "controlvector", endianess=order)
        writer.add_custom_alignment(alignment)
        for key, value in others.items():
            writer.add_key_value(key, value, KINDS[type(value)])
        for block, numbers in vectors.items():
            writer.add_tensor(f"direction.{block}", np.array(numbers, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if not vectors:
            assert "holds no tensor" in str(outcome(lambda: read_control_vector(path), path, VectorFileError))
            return
        theirs = {t.name: torch.from_numpy(np.array(t.data, np.float32)) for t in gguf.GGUFReader(path).tensors}
        ours = read_control_vector(path)
        assert list(ours) == [f"block:{block}" for block in sorted(vectors)]
        assert all(torch.equal(ours[f"block:{block}"], theirs[f"direction.{block}"]) for block in vectors)
