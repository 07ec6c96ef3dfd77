"""Texts as data in event files: written and read back, beside numbers, and as others may have written them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto import types_pb2
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.loggers import TextRow, read_compact, read_compact_histograms, read_texts
from mi_crow_lightning.loggers.text_rows import write_texts
from tests.loggers.test_event_files_of_strangers import STATISTIC, TWO, event, file_of, tensor
from tests.strangers import as_json, changed, outcome

ROW = TextRow(
    *("predict", 3, None, 0, "Rain", 2.0, 0, " fell"),
    tokens=("Rain", " fell", "</s>"),
    prompt_tokens=1,
    special=(2,),
    touched={"steer": (False, True, None)},
    unmarked={"graph": "it runs inside a compiled graph"},
    left_out=(0, 7),
)
HOSTILE = ("<script>hit=1</script>", "\ud800 half", "\0\x1b[31m", "\u202egnp", "a" * 5000, '"}]', "日本語 🙂")


def written(folder: Path, *rows: list[TextRow]) -> list[TextRow]:
    with SummaryWriter(str(folder)) as writer:
        for of_loader in rows:
            write_texts([object(), SimpleNamespace(experiment=writer)], of_loader)
    return list(read_texts(folder))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    none = TextRow("predict", 3, None, 1, None, None, 1, None, ("5", "7"), 1, joined=False)
    hostile = [
        ROW._replace(row=2, prompt=text, text=text, tokens=(text,) * 3, touched={text: (None,) * 3}) for text in HOSTILE
    ]
    rows = [ROW, none, *hostile]
    assert written(tmp_path, rows) == rows


def test_dataloaders_are_apart_and_nothing_is_written_of_none(tmp_path: Path) -> None:
    apart = [[ROW._replace(dataloader_idx=index, row=index)] for index in (0, 1)]
    assert written(tmp_path, *apart, []) == [*apart[0], *apart[1]]


def test_readers_of_numbers_pass_over_texts_and_the_other_way_round(tmp_path: Path) -> None:
    texts = {"version": 1, "kind": "texts", "stage": "predict"}
    (tmp_path / "events.out.tfevents.1").write_bytes(
        file_of(event(TWO, json.dumps(STATISTIC)), event(rows_of(fields()), json.dumps(texts), name="texts/#1"))
    )
    assert [row.value for row in read_compact(tmp_path)] == [0.5, -3.0]
    assert list(read_compact_histograms(tmp_path)) == []
    assert list(read_texts(tmp_path)) == [ROW._replace(step=0)]


def fields(**changes: Any) -> dict[str, Any]:
    kept = {name: value for name, value in ROW._asdict().items() if name not in ("stage", "step", "dataloader_idx")}
    return {**kept, "touched": {"steer": "01-"}, **changes}


def rows_of(*rows: Any, **changes: Any) -> Any:
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return tensor(**{"dtype": types_pb2.DT_STRING, "shape": (len(rows),), "string_val": texts, **changes})


def read(folder: Path, values: Any, **schema: Any) -> Any:
    """The rows, or the error."""
    described = json.dumps({"version": 1, "kind": "texts", "stage": "predict", **schema})
    (file := folder / "events.out.tfevents.1").write_bytes(file_of(event(values, described)))
    return outcome(lambda: list(read_texts(folder)), file, ValueError)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": "abc"}, "'tokens' is 'abc'"),
        ({"tokens": ["a", 1, "b"]}, "'tokens' are not texts"),
        ({"touched": {"steer": "01"}}, "not one mark for each token"),
        ({"touched": {"steer": "01x"}}, "not one mark for each token"),
        ({"touched": {"steer": 1}}, "not one mark for each token"),
        ({"unmarked": {"steer": 1}}, "'unmarked' are not texts"),
        ({"row": -1}, "'row' is -1"),
        ({"row": True}, "'row' is True"),
        ({"sequence": 2**31}, "'sequence' is 2147483648"),
        ({"strength": "2"}, "'strength' is '2'"),
        ({"strength": float("nan")}, "'strength' is nan"),
        ({"special": [3]}, "'special' is [3]"),
        ({"joined": 1}, "'joined' is 1"),
        ({"left_out": [1]}, "'left_out' is (1,)"),
        ({"prompt": ["x"]}, "'prompt' is ['x']"),
    ],
)
def test_rows_that_hold_something_else_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    error = read(tmp_path, rows_of(fields(), fields(**changes)))
    assert isinstance(error, ValueError) and says in str(error)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (rows_of(b"[" * 5000), "nested deeper"),
        (rows_of(b"\xff"), "not JSON"),
        (rows_of(b"7"), "'tokens' is None"),
        (rows_of(b" " * 5_000_000), "5000000 bytes"),
        (rows_of(fields(), shape=(10**12,)), "of shape [1000000000000]"),
        (rows_of(fields(), shape=(1, 1)), "of shape [1, 1]"),
        (TWO, "type 1"),
    ],
)
def test_tensors_that_are_no_texts_are_refused(values: Any, says: str, tmp_path: Path) -> None:
    error = read(tmp_path, values)
    assert isinstance(error, ValueError) and says in str(error)
    assert isinstance(read(tmp_path, rows_of(fields()), stage="sleep"), ValueError)
    assert read(tmp_path, rows_of()) == []


@pytest.mark.fuzz
@settings(max_examples=60)
@given(st.data())
def test_rows_of_strangers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    read(
        tmp_path_factory.mktemp("rows"), rows_of(as_json(data.draw(changed(fields()))).encode("utf-8", "surrogatepass"))
    )
