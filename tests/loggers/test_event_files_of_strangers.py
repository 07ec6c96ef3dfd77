"""Event files that claim more than they hold, or other things: the rows up to there, then `ValueError`, soon."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from mi_crow_lightning.loggers import EventRow, HistoryRow, read_compact, read_compact_histograms, read_events
from tests.strangers import CLAIMS, as_json, changed, damaged, outcome

pytestmark = pytest.mark.faults

STATISTIC: dict[str, Any] = {
    "version": 1,
    "kind": "statistic",
    "prefix": "p",
    "name": "rms",
    "stage": "validate",
    "layers": ["h.0", "h.1"],
    "blocks": [None, 7],
}
HISTOGRAM: dict[str, Any] = {
    **{key: value for key, value in STATISTIC.items() if key not in ("layers", "blocks")},
    "kind": "histogram",
    "layer": "h.0",
    "block": 0,
    "edges": [-1.0, 0.0, 2.0],
}

EVENT: dict[str, Any] = {"version": 1, "kind": "event", "stage": "validate", "noted_by": "0"}


def record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_crc32c(length)) + event + struct.pack("<I", masked_crc32c(event))


def tensor(dtype: int = types_pb2.DT_FLOAT, shape: tuple[int, ...] = (2,), **content: Any) -> TensorProto:
    dimensions = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(dtype=dtype, tensor_shape=TensorShapeProto(dim=dimensions), **content)  # type: ignore[arg-type]


TWO = tensor(tensor_content=struct.pack("<2f", 0.5, -3.0))
TEXTS = tensor(types_pb2.DT_STRING, (1, 4), string_val=[b"warning", b"<b>", b"", b"h.0"])
COUNTS = tensor(types_pb2.DT_INT64, int64_val=[3, 2**40])


def event(values: TensorProto, schema: str | None, step: int = 0, name: str = "p_rms/#1") -> bytes:
    metadata = None
    if schema is not None:
        plugin = SummaryMetadata.PluginData(
            plugin_name="mi_crow_lightning", content=schema.encode("utf-8", "surrogatepass")
        )
        metadata = SummaryMetadata(plugin_data=plugin)
    value = Summary.Value(tag=name, metadata=metadata, tensor=values)
    return Event(step=step, summary=Summary(value=[value])).SerializeToString()


def file_of(*events: bytes) -> bytes:
    return b"".join(map(record, [Event(file_version="brain.Event:2").SerializeToString(), *events]))


WHOLE = [
    event(TWO, json.dumps(STATISTIC)),
    event(COUNTS, json.dumps(HISTOGRAM), name="p/h.0#2"),
    event(TWO, None, step=1),
    event(COUNTS, None, step=1, name="p/h.0#2"),
    event(TEXTS, json.dumps(EVENT), step=1, name="events/val/#3"),
]


def read(folder: Path, content: bytes) -> list[Any]:
    """The rows of a file, and last, if there is one, the error."""
    (file := folder / "events.out.tfevents.1").write_bytes(content)
    rows: list[Any] = []

    def read_all() -> None:
        rows.extend(read_compact(folder))
        rows.extend(read_compact_histograms(folder))
        rows.extend(read_events(folder))

    error = outcome(read_all, file, ValueError)
    return rows if error is None else [*rows, error]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.mark.documents("reliability/bytes-of-an-event-file-are-damaged")
def test_a_whole_file_is_read(tmp_path: Path) -> None:
    """The base of what follows: each change to it is the one thing that is wrong."""
    rows = read(tmp_path, file_of(*WHOLE))
    assert rows[:2] == [
        HistoryRow("validate", 0, "p_rms/val/h.0", "h.0", "rms", 0.5, run=tmp_path.name),
        HistoryRow("validate", 0, "p_rms/val/h.1", "h.1", "rms", -3.0, 7, tmp_path.name),
    ]
    assert [(row.step, row.edges, row.counts) for row in rows[4:6]] == [
        (step, (-1, 0, 2), (3, 2**40)) for step in (0, 1)
    ]
    assert rows[6:] == [EventRow("validate", 1, "warning", "<b>", "", "h.0")]


@pytest.mark.fuzz
@pytest.mark.documents("reliability/bytes-of-an-event-file-are-damaged")
@settings(max_examples=150)
@given(damaged(file_of(*WHOLE)))
def test_damaged_bytes(folder: Path, content: bytes) -> None:
    read(folder, content)


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-event-of-a-file-is-not-an-event")
@settings(max_examples=150)
@given(st.data())
def test_damaged_events_whose_checksums_fit(folder: Path, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(WHOLE) - 1))
    read(folder, file_of(*WHOLE[:place], data.draw(damaged(WHOLE[place])), *WHOLE[place + 1 :]))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-schema-in-an-event-file-holds-something-else")
@settings(max_examples=150)
@given(st.sampled_from([(TWO, STATISTIC), (COUNTS, HISTOGRAM), (TEXTS, EVENT)]), st.data())
def test_schemas_that_hold_something_else(folder: Path, case: Any, data: st.DataObject) -> None:
    values, schema = case
    read(folder, file_of(event(values, as_json(data.draw(changed(schema))))))


SIZES = st.sampled_from([0, 1, 2, 3]) | st.sampled_from(CLAIMS).map(lambda size: size % 2**63)
FORMS = ["float_val", "double_val", "int64_val", "int_val", "half_val", "string_val", "bool_val"]
CONTENTS = {"tensor_content": st.binary(max_size=24)} | {
    form: st.lists(st.binary(max_size=3) if form == "string_val" else st.integers(0, 1), max_size=3) for form in FORMS
}


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-tensor-in-an-event-file-has-another-shape-than-its-schema")
@settings(max_examples=150)
@given(
    st.sampled_from([types_pb2.DT_FLOAT, *types_pb2.DataType.values()]),
    st.just((2,)) | st.lists(SIZES, max_size=3).map(tuple),
    st.fixed_dictionaries({}, optional=CONTENTS),
)
def test_made_up_tensors(folder: Path, dtype: int, shape: tuple[int, ...], content: dict[str, Any]) -> None:
    rows = read(folder, file_of(event(tensor(dtype, shape, **content), json.dumps(STATISTIC))))
    assert len(rows) == 2 or isinstance(rows[0], ValueError)  # two numbers, or the error alone


@pytest.mark.documents("reliability/a-tensor-in-an-event-file-has-another-shape-than-its-schema")
@pytest.mark.parametrize("size", [0, 1, 3, 10**9, 2**62])
@pytest.mark.parametrize(
    "content", [{"float_val": [0.5]}, {"float_val": [0.5, 0.5]}, {"tensor_content": b"\0" * 8}, {}]
)
def test_a_number_is_not_repeated(tmp_path: Path, size: int, content: dict[str, Any]) -> None:
    """A file of 200 bytes with one number and a shape of 10**9 took 4 GB."""
    (error,) = read(tmp_path, file_of(event(tensor(shape=(size,), **content), json.dumps(STATISTIC))))
    assert "2 numbers are needed" in str(error)


@pytest.mark.documents("reliability/a-tensor-in-an-event-file-has-another-shape-than-its-schema")
@pytest.mark.parametrize(
    ("shape", "content", "says"),
    [
        ((2, 4), {"string_val": [b""] * 4}, "4 texts: 4 texts for each event are needed"),
        ((10**9, 4), {"string_val": [b""] * 4}, "4 texts: 4 texts for each event are needed"),
        ((4,), {"string_val": [b""] * 4}, "4 texts: 4 texts for each event are needed"),
        ((1, 3), {"string_val": [b""] * 3}, "3 texts: 4 texts for each event are needed"),
        ((1, 4), {"string_val": [b"", b"x" * 1001, b"", b""]}, "a text of more than 1000 bytes"),
        ((1, 4), {"string_val": [b"\xff", b"", b"", b""]}, "cannot be read: UnicodeDecodeError"),
        ((1, 4), {"float_val": [1.0] * 4}, "type 7 and 0 texts"),
    ],
)
def test_events_of_another_form(tmp_path: Path, shape: tuple[int, ...], content: dict[str, Any], says: str) -> None:
    (error,) = read(tmp_path, file_of(event(tensor(types_pb2.DT_STRING, shape, **content), json.dumps(EVENT))))
    assert says in str(error)


@pytest.mark.documents("reliability/a-tensor-in-an-event-file-has-another-shape-than-its-schema")
def test_numbers_may_be_listed(tmp_path: Path) -> None:
    """As other writers do with few."""
    rows = read(tmp_path, file_of(event(tensor(float_val=[0.5, 1.0]), json.dumps(STATISTIC))))
    assert [row.value for row in rows] == [0.5, 1.0]


@pytest.mark.documents("reliability/a-record-of-an-event-file-claims-to-be-longer-than-the-file")
@pytest.mark.parametrize("claim", [2**20, 2**31, 2**40, 2**63, 2**64 - 1])
def test_records_that_claim_to_be_large(tmp_path: Path, claim: int) -> None:
    """Its checksum fits, so it looks like one that was cut off; TensorBoard's reader asks for that many bytes."""
    length = struct.pack("<Q", claim)
    content = file_of(WHOLE[0]) + length + struct.pack("<I", masked_crc32c(length)) + b"\0" * 64
    assert [row.value for row in read(tmp_path, content)] == [0.5, -3.0]


@pytest.mark.documents("reliability/bytes-of-an-event-file-are-damaged")
@pytest.mark.parametrize("part", [0, 9, 20, -1], ids=["length", "its checksum", "event", "its checksum, too"])
def test_checksums_that_do_not_fit(tmp_path: Path, part: int) -> None:
    """TensorBoard's reader stops there without a word, and what follows is lost."""
    before, broken = file_of(WHOLE[0]), bytearray(record(WHOLE[2]))
    broken[part] ^= 1
    *rows, error = read(tmp_path, before + broken + record(WHOLE[2]))
    assert [row.step for row in rows] == [0, 0]
    assert f"is damaged at byte {len(before)}: a checksum does not fit" in str(error)


@pytest.mark.documents("reliability/a-schema-in-an-event-file-holds-something-else")
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("[1]", "its compact tensors have version None, but this release reads version 1"),
        ({"version": "x" * 9000}, "its compact tensors have version 'xxx"),
        ({"kind": "scalar"}, "has a schema with the kind 'scalar': one of statistic, histogram"),
        ({"kind": "event", "stage": "fit"}, "has a schema with the stage 'fit'"),
        ({"stage": "fit"}, "has a schema with the stage 'fit': one of train, validate, test, predict is needed"),
        ({"layers": "h.0"}, "has a schema with the layers 'h.0': a list is needed"),
        ({"layers": [1, 2]}, "has a schema with the name 1: at most 1000 letters are read"),
        ({"name": "x" * 1001}, "at most 1000 letters are read"),
        ({"prefix": None}, "has a schema with the name None"),
        ({"dataloader_idx": -1}, "has a schema with the dataloader_idx -1: a whole number is needed"),
        ({"dataloader_idx": True}, "has a schema with the dataloader_idx True: a whole number is needed"),
        ({"blocks": 3}, "has a schema with the blocks 3: a list is needed"),
        ({"blocks": [0]}, "has a schema with 1 blocks for 2 layers: one for each is needed"),
        ({"blocks": [0, -1]}, "has a schema with the block -1: a whole number is needed"),
        ({"blocks": [0, 2**63]}, "has a schema with the block 9223372036854775808: a whole number is needed"),
        ({**HISTOGRAM, "block": "0"}, "has a schema with the block '0': a whole number is needed"),
        ({**HISTOGRAM, "edges": [0.0, 0.0, 1.0]}, "has a schema with the edges [0.0, 0.0, 1.0]: two or more numbers"),
        ({**HISTOGRAM, "edges": [float("nan"), 1.0]}, "has a schema with the edges [nan, 1.0]: two or more numbers"),
        ({**HISTOGRAM, "edges": [1.0]}, "has a schema with the edges [1.0]: two or more numbers that ascend"),
        ({**HISTOGRAM, "edges": [0, "1"]}, "has a schema with the edges [0, '1']: two or more numbers that ascend"),
        ({**HISTOGRAM, "edges": [0, 1, 10**400]}, "cannot be read: OverflowError"),
        ({**HISTOGRAM, "layer": ["h.0"]}, "has a schema with the name ['h.0']: at most 1000 letters are read"),
    ],
)
def test_schemas_of_another_form(tmp_path: Path, schema: Any, says: str) -> None:
    text = schema if isinstance(schema, str) else json.dumps({**STATISTIC, **schema})
    (error,) = read(tmp_path, file_of(event(TWO, text)))
    assert says in str(error)


@pytest.mark.documents("reliability/a-schema-in-an-event-file-is-nested-without-end")
@pytest.mark.parametrize(
    "deep", ["[" * 5000, '{"version":' * 5000, '{"version": 1, "layers": ' + "[" * 200 + "]" * 200 + "}"]
)
def test_schemas_that_are_nested_deep(tmp_path: Path, deep: str) -> None:
    (error,) = read(tmp_path, file_of(event(TWO, deep)))
    assert "has a schema that is nested deeper than 100 levels" in str(error)


@pytest.mark.documents("reliability/two-schemas-in-an-event-file-describe-one-tensor")
def test_two_schemas_of_one_tag(tmp_path: Path) -> None:
    """The first was used for the tags of rows, and the second for their layers."""
    other = json.dumps({**STATISTIC, "layers": ["h.7", "h.8"]})
    *rows, error = read(tmp_path, file_of(WHOLE[0], event(TWO, json.dumps(STATISTIC)), event(TWO, other)))
    assert [row.layer for row in rows] == ["h.0", "h.1"] * 2  # the same once more is fine: a run that was resumed
    assert "describes the tensors of 'p_rms/#1' in two ways" in str(error)


LINKS: list[Callable[[Path], None]] = [
    lambda path: path.symlink_to(path.name),
    lambda path: path.mkdir(),
    lambda path: path.symlink_to("gone"),
]


@pytest.mark.documents("reliability/an-event-file-is-a-folder-or-a-link-to-nowhere")
@pytest.mark.parametrize("make", LINKS, ids=["circle", "folder", "nowhere"])
def test_what_is_not_a_file_is_passed_over(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "events.out.tfevents.0")
    with pytest.raises(FileNotFoundError, match="no event file of TensorBoard"):
        read_compact(tmp_path)
    assert len(read(tmp_path, file_of(WHOLE[0]))) == 2
