"""The tab's texts: those of the event file, and nothing of what others may have written there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning.loggers import TextRow, read_texts
from mi_crow_lightning.tensorboard_plugin import text_rows
from mi_crow_lightning.tensorboard_plugin.text_rows import texts_of
from tests.loggers.test_text_rows import HOSTILE, ROW, fields
from tests.strangers import as_json, changed
from tests.tensorboard_plugin.logs import text_schema, text_tensor, write_run, write_shown, write_tensor
from tests.tensorboard_plugin.wsgi import Log

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")


def shown_of(row: TextRow) -> dict[str, Any]:
    """A row as the page gets it."""
    marks = {None: "-", False: "0", True: "1"}
    fields = {name: value for name, value in row._asdict().items() if name not in ("stage", "step", "dataloader_idx")}
    touched = {hook: "".join(map(marks.__getitem__, of_hook)) for hook, of_hook in row.touched.items()}
    return json.loads(json.dumps({**fields, "touched": touched}))  # type: ignore[no-any-return]


def answer(log: Log, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(log.get("texts", run=run).data)
    return found


def test_the_texts_are_those_of_the_event_file(tmp_path: Path) -> None:
    hostile = [ROW._replace(row=2, prompt=text, tokens=(text,) * 3, touched={text: (None,) * 3}) for text in HOSTILE]
    write_shown(tmp_path / "a", [ROW, *hostile])
    write_shown(tmp_path / "a", [ROW._replace(step=7, row=5)])
    write_shown(tmp_path / "apart", [ROW._replace(dataloader_idx=1)])
    write_shown(tmp_path / "apart", [ROW._replace(dataloader_idx=0, row=4)])
    write_run(tmp_path / "numbers", range(2))
    log = Log(tmp_path)
    assert {run["name"]: run["texts"] for run in log.index()["runs"]} == {"a": True, "apart": True, "numbers": False}
    found = answer(log, "a")
    assert found["left_out"] == 0
    assert [(one["stage"], one["loader"], one["step"]) for one in found["texts"]] == [
        ("predict", None, 3),
        ("predict", None, 7),
    ]
    rows = [row for one in found["texts"] for row in one["rows"]]
    assert rows == [shown_of(row) for row in read_texts(tmp_path / "a")]
    assert [(one["loader"], one["rows"][0]["row"]) for one in answer(log, "apart")["texts"]] == [(0, 4), (1, 0)]
    assert answer(log, "numbers") == {"texts": [], "left_out": 0}
    assert log.get("texts", run="none").status_code == 404 and log.get("texts").status_code == 400


def test_of_a_step_that_was_written_again_the_last_texts_count(tmp_path: Path) -> None:
    write_shown(tmp_path / "a", [ROW])
    write_shown(tmp_path / "a", [ROW._replace(text=" did not fall")])
    (one,) = answer(Log(tmp_path), "a")["texts"]
    assert [row["text"] for row in one["rows"]] == [" did not fall"]


def test_what_is_not_a_row_is_left_out_and_counted(tmp_path: Path) -> None:
    broken = [b"\xff", b"[" * 5000, b"7", json.dumps(fields(row=-1)).encode(), b'{"touched":{}}']
    write_tensor(tmp_path / "a", "texts/predict/#1", text_schema(), text_tensor(json.dumps(fields()).encode(), *broken))
    write_tensor(tmp_path / "b", "texts/predict/#1", text_schema(stage=3), text_tensor(b"{}"))
    log = Log(tmp_path)
    found = answer(log, "a")
    assert found["left_out"] == len(broken) and [len(one["rows"]) for one in found["texts"]] == [1]
    (problem,) = next(run for run in log.index()["runs"] if run["name"] == "b")["problems"]
    assert "'stage'" in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": ["a", 1, "b"]},
        {"touched": {"steer": "01"}},
        {"touched": {"steer": "012"}},
        {"touched": []},
        {"unmarked": {"steer": 1}},
        {"strength": float("nan")},
        {"strength": True},
        {"sequence": 1.5},
        {"special": [-1]},
        {"left_out": [0]},
        {"joined": "yes"},
        {"prompt": 1},
        {"row": 2**31},
    ],
)
def test_each_field_is_looked_at(changes: dict[str, Any]) -> None:
    points = [(3, 0.0, np.array([json.dumps(fields(**changes)).encode(), json.dumps(fields()).encode()], dtype=object))]
    found, left_out = texts_of(points)
    assert left_out == 1 and found == [{"step": 3, "rows": [shown_of(ROW)]}]


@pytest.mark.fuzz
@settings(max_examples=100)
@given(st.data())
def test_rows_of_strangers(data: st.DataObject) -> None:
    content = as_json(data.draw(changed(fields()))).encode("utf-8", "surrogatepass")
    found, left_out = texts_of([(0, 0.0, np.array([content], dtype=object))])
    assert left_out + len(found[0]["rows"]) == 1
    json.dumps(found, allow_nan=False)


def test_there_is_an_end_to_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "_MOST_ROWS", 5)
    monkeypatch.setattr(text_rows, "_MOST_POINTS", 3)
    rows = np.array([json.dumps(fields()).encode()] * 2, dtype=object)
    found, left_out = texts_of((step, 0.0, rows) for step in range(6))
    assert [(one["step"], len(one["rows"])) for one in found] == [(3, 1), (4, 2), (5, 2)] and left_out == 7
    monkeypatch.setattr(text_rows, "_MOST_BYTES", 300)
    found, left_out = texts_of([(0, 0.0, rows)])
    assert (len(found[0]["rows"]), left_out) == (1, 1)
