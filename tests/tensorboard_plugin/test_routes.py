"""The tab's addresses, asked without a browser: TensorBoard's own WSGI application around the plugin."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.loggers import EventRow, read_compact, read_compact_histograms, read_events
from mi_crow_lightning.tensorboard_plugin.assets import FILES
from mi_crow_lightning.tensorboard_plugin.packing import unpack
from mi_crow_lightning.tensorboard_plugin.routes import Routes
from mi_crow_lightning.tensorboard_plugin.source import Source
from tests.tensorboard_plugin.logs import (
    BLOCKS,
    schema,
    tensor,
    texts,
    wave,
    write_events,
    write_plain,
    write_run,
    write_tensor,
)
from tests.tensorboard_plugin.wsgi import Log

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

RMS = {"prefix": "activations", "name": "rms", "stage": "train"}
HOSTILE = (
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "\u202egnp.exe",
    "a&run=other#x",
    "\"'><img src=x onerror=alert(1)>",
    "x" * 5000,
    "=cmd|' /C calc'!A0",
    "h.\u0000\n",
    "h." + "9" * 5000,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder = tmp_path_factory.mktemp("log")
    write_run(folder / "one", range(5), stages=("train", "validate"))
    write_plain(folder / "plain", range(4))
    return Log(folder)


def test_the_numbers_are_those_of_the_event_file(log: Log) -> None:
    header, arrays = log.unpacked("matrix", run="one", **RMS)
    assert tuple(header["layers"]) == BLOCKS and header["left_out"] == 0
    rows = [row for row in read_compact(log.folder / "one") if (row.stage, row.name) == ("train", "rms")]
    expected = np.array([row.value for row in rows], dtype=np.float32).reshape(5, len(BLOCKS))
    assert arrays["values"].dtype == np.float32 and np.array_equal(arrays["values"], expected)
    assert np.array_equal(arrays["steps"], np.arange(5.0)) and (arrays["times"] > 1e9).all()


def test_the_histograms_are_those_of_the_event_file(log: Log) -> None:
    header, arrays = log.unpacked("histogram", run="one", layer=BLOCKS[2], **{**RMS, "name": "histogram"})
    rows = [row for row in read_compact_histograms(log.folder / "one") if row.layer == BLOCKS[2]]
    expected = [row.counts for row in rows if row.stage == "train"]
    assert header["parts"] == 1 and np.array_equal(arrays["counts0"], expected)
    assert np.array_equal(arrays["edges0"], rows[0].edges) and np.array_equal(arrays["steps0"], np.arange(5.0))


def test_the_index_names_every_series_once(log: Log) -> None:
    index = log.index()
    assert [run["name"] for run in index["runs"]] == ["one", "plain"] and index["samples"] == 1000
    one = index["runs"][0]
    named = [(series["name"], series["stage"], series["source"]) for series in one["statistics"]]
    stages = ("train", "validate")
    assert named == [(name, stage, "compact") for name in ("mean", "rms", "abs_max") for stage in stages]
    assert [series["stage"] for series in one["histograms"]] == ["train", "validate"]
    assert {tuple(index["layers"][series["layers"]]) for series in one["statistics"]} == {BLOCKS}


def test_one_layer_has_all_its_statistics(log: Log) -> None:
    header, arrays = log.unpacked("layer", run="one", layer=BLOCKS[3], **RMS)
    assert header["names"] == ["mean", "rms", "abs_max"]
    for place, name in enumerate(header["names"]):
        expected = np.array([wave(name, 3, step) for step in range(5)], dtype=np.float32)
        assert np.array_equal(arrays[f"values{place}"], expected) and arrays[f"steps{place}"].tolist() == [*range(5)]


def test_plain_scalars_and_histograms_are_read_too(log: Log) -> None:
    plain = log.index()["runs"][1]
    assert [(series["name"], series["source"]) for series in plain["statistics"]] == [
        ("mean", "scalars"),
        ("rms", "scalars"),
    ]
    header, arrays = log.unpacked("matrix", run="plain", **RMS)
    expected = [[wave("rms", layer, step) for layer in range(len(BLOCKS))] for step in range(4)]
    assert tuple(header["layers"]) == BLOCKS and np.array_equal(arrays["values"], np.float32(expected))
    header, arrays = log.unpacked("histogram", run="plain", layer=BLOCKS[0], **{**RMS, "name": "histogram"})
    assert header["parts"] == 4 and [arrays[f"counts{at}"].sum() for at in range(4)] == [21.0, 27.0, 33.0, 39.0]
    assert arrays["edges0"].tolist() == [-3.0, -1.0, -0.25, 0.0, 0.25, 1.0, 3.5]  # from the smallest to the largest


def test_compact_tensors_come_before_the_scalars_of_the_same_series(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(2), scalars="all")
    (run,) = Log(tmp_path).index()["runs"]
    for kind in ("statistics", "histograms"):
        assert {series["source"] for series in run[kind]} == {"compact"}
    assert len(run["statistics"]) == 3 and len(run["histograms"]) == 1


def test_what_is_not_there_is_answered_with_404(log: Log) -> None:
    for query in ({"run": "none", **RMS}, {"run": "one", **RMS, "name": "no"}, {"run": "one", **RMS, "loader": "3"}):
        response = log.get("matrix", **query)
        assert response.status_code == 404 and "has no" in json.loads(response.data)["error"]
    assert log.get("layer", run="one", layer="h.99", **RMS).status_code == 404
    assert log.get("histogram", run="one", layer="h.99", **{**RMS, "name": "histogram"}).status_code == 404


@pytest.mark.parametrize("missing", ["run", "prefix", "name", "stage"])
def test_a_missing_parameter_is_named(log: Log, missing: str) -> None:
    query = {key: value for key, value in {"run": "one", **RMS}.items() if key != missing}
    response = log.get("matrix", **query)
    assert response.status_code == 400 and repr(missing) in json.loads(response.data)["error"]


@pytest.mark.parametrize("loader", ["x", "-1", "1.5", "9" * 50, "\u0661"])
def test_a_dataloader_is_a_number(log: Log, loader: str) -> None:
    assert log.get("matrix", run="one", **RMS, loader=loader).status_code == 400


DATA = ("index", "matrix", "layer", "histogram", "epochs", "events", "reports", "texts")


def test_every_route_of_data_is_tried() -> None:
    assert {f"/{route}" for route in DATA} == Routes(Source(None), None).apps().keys()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("route", [*DATA, "static/index.js"])
def test_other_methods_are_refused(log: Log, route: str, method: str) -> None:
    response = log.get(route, method=method)
    assert response.status_code == 405 and response.headers["Allow"] == "GET, HEAD"


def test_head_has_no_body(log: Log) -> None:
    response = log.get("matrix", method="HEAD", run="one", **RMS)
    assert response.status_code == 200 and not response.data and int(response.headers["Content-Length"]) > 100


PATHS = ("../plugin.py", "..%2fplugin.py", "%2e%2e/plugin.py", "static/../../plugin.py", "/etc/passwd", "index.js%00")


@pytest.mark.parametrize("path", [*PATHS, "", "uplot", "LICENSE", "INDEX.JS", "..\\plugin.py"])
def test_only_the_files_of_the_page_are_served(log: Log, path: str) -> None:
    response = log.get(f"static/{path}")
    assert response.status_code == 404 and b"ActivationsPlugin" not in response.data


@pytest.mark.parametrize("run", [*PATHS, "../../../../../../etc/passwd", "one/../../.."])
@pytest.mark.parametrize("route", DATA[1:])
def test_a_run_is_a_name_and_not_a_path(log: Log, route: str, run: str) -> None:
    response = log.get(route, run=run, layer="h.0", **RMS)
    found = json.loads(response.data)
    assert "error" in found if response.status_code == 404 else not any(found.values()), found
    assert response.status_code in (200, 404) and b"root:" not in response.data


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_the_page_is_served(log: Log, name: str) -> None:
    response = log.get(f"static/{name}")
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    assert response.status_code == 200 and response.headers["Content-Type"].startswith(kind)
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    write_run(tmp_path / "<b>run</b> & 'q'", range(2), layers=HOSTILE, prefix="<i>prefix</i>")
    log = Log(tmp_path)
    (run,) = log.index()["runs"]
    assert run["name"] == "<b>run</b> & 'q'"
    asked = {**RMS, "prefix": "<i>prefix</i>", "run": run["name"]}
    header, _ = log.unpacked("matrix", **asked)
    assert tuple(header["layers"]) == HOSTILE
    for layer in HOSTILE:
        assert log.unpacked("layer", **asked, layer=layer)[0]["names"] == ["mean", "rms", "abs_max"]
        assert log.unpacked("histogram", **{**asked, "name": "histogram"}, layer=layer)[0]["parts"] == 1
    for response in (log.get("index"), log.get("matrix", **asked), log.get("matrix", run=HOSTILE[0], **RMS)):
        assert response.headers["Content-Type"].split(";")[0] in ("application/json", "application/octet-stream")
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_nan_infinity_and_the_smallest_numbers_arrive(tmp_path: Path) -> None:
    odd = (math.nan, math.inf, -math.inf, 1e-45, -0.0, 3.4028235e38)
    write_run(tmp_path / "run", [0], names=("rms",), value=lambda name, layer, step: odd[layer])
    _, arrays = Log(tmp_path).unpacked("matrix", run="run", **RMS)
    assert arrays["values"].tobytes() == np.array(odd, dtype=np.float32).tobytes()


BAD_SCHEMAS = {
    "empty": b"",
    "no JSON": b"\x80\xff{",
    "cut off": schema()[:-9],
    "too deep": b"[" * 100_000,
    "a list": b"[1]",
    "another version": schema(version=2),
    "a huge version": schema(version=10**400),
    "no version": schema(version=None),
    "a version that is true": schema(version=True),
    "another kind": schema(kind="text"),
    "no layers": schema(layers=[]),
    "layers of numbers": schema(layers=[1, 2]),
    "the same layers": schema(layers=["h.0", "h.0"]),
    "a name that is a number": schema(name=3),
    "a dataloader that is text": schema(dataloader_idx="0"),
    "edges of text": schema(kind="histogram", layer="h.0", edges=["a", "b"]),
    "one edge": schema(kind="histogram", layer="h.0", edges=[1.0]),
    "edges that fall": schema(kind="histogram", layer="h.0", edges=[1.0, 0.0]),
    "edges that are not numbers": schema(kind="histogram", layer="h.0", edges=[math.nan, 1.0]),
    "edges that are too large": schema(kind="histogram", layer="h.0", edges=[0, 10**400]),
}


def test_a_schema_that_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(2))
    for place, content in enumerate(BAD_SCHEMAS.values()):
        write_tensor(tmp_path / "run", f"bad{place:02}", content, tensor([1.0, 2.0]))
    log = Log(tmp_path)
    (run,) = log.index()["runs"]
    assert [problem.partition(":")[0] for problem in run["problems"]] == [
        f"bad{place:02}" for place in range(len(BAD_SCHEMAS))
    ]
    assert all("damaged" in problem or "update" in problem for problem in run["problems"])
    assert log.unpacked("matrix", run="run", **RMS)[1]["values"].shape == (2, len(BLOCKS))


def test_values_that_do_not_fit_their_schema_are_left_out_and_counted(tmp_path: Path) -> None:
    for step, value in enumerate(([1.0, 2.0], [1.0], [[1.0, 2.0]], [3.0, 4.0], [])):
        write_tensor(tmp_path / "run", "activations_rms/#1", schema(), tensor(value), step)
    header, arrays = Log(tmp_path).unpacked("matrix", run="run", **RMS)
    assert header["left_out"] == 3
    assert arrays["steps"].tolist() == [0, 3] and arrays["values"].tolist() == [[1, 2], [3, 4]]


def test_bytes_that_do_not_fill_their_shape_are_an_error_of_this_answer_alone(tmp_path: Path) -> None:
    write_tensor(tmp_path / "run", "activations_rms/#1", schema(), tensor([1.0, 2.0], content=b"\0\0\0"))
    write_run(tmp_path / "whole", range(2))
    log = Log(tmp_path)
    response = log.get("matrix", run="run", **RMS)
    assert response.status_code == 422 and "cannot decode" in json.loads(response.data)["error"]
    assert log.get("matrix", run="whole", **RMS).status_code == 200


def test_a_truncated_file_shows_what_came_before(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(6))
    (file,) = (tmp_path / "run").glob("events*")
    file.write_bytes(file.read_bytes()[:-40])
    assert Log(tmp_path).unpacked("matrix", run="run", **RMS)[1]["steps"].tolist() == [*range(5)]


def test_a_log_without_runs_has_an_empty_index(tmp_path: Path) -> None:
    assert Log(tmp_path).index() == {"samples": 1000, "layers": [], "runs": []}


def test_a_growing_run_is_read_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(3))
    log = Log(tmp_path)
    first = log.get("matrix", run="run", **RMS)
    state = first.headers["ETag"]
    assert log.get("matrix", run="run", **RMS, headers={"If-None-Match": state}).status_code == 304
    write_run(tmp_path / "run", range(3, 5))
    log.reload()
    second = log.get("matrix", run="run", **RMS, headers={"If-None-Match": state})
    assert second.status_code == 200 and second.headers["ETag"] != state
    assert unpack(second.data)[1]["steps"].tolist() == [*range(5)]


def test_epochs_begin_where_lightning_logs_a_new_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(6))
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step, epoch in ((1, 0), (3, 0), (3, 0), (5, 1), (7, 1), (9, 2), (11, math.nan)):
            writer.add_scalar("epoch", epoch, step)
    log = Log(tmp_path)
    assert json.loads(log.get("epochs", run="run").data) == {"epochs": [[1, 0.0], [5, 1.0], [9, 2.0]]}
    assert json.loads(log.get("epochs", run="none").data) == {"epochs": []}


EVENTS = (
    EventRow("train", 1, "switch", "on", "half"),
    EventRow("train", 1, "detector", "<b>&\u202e\n\0", "<i>", "h.0"),
    EventRow("validate", 2, "warning", "w" * 600),
    EventRow("train", 4, "exception", "ValueError"),
)


def events_in(folder: Path, run: str = "run") -> tuple[list[EventRow], int]:
    answer = json.loads(Log(folder).get("events", run=run).data)
    return [EventRow(**event) for event in answer["events"]], answer["left_out"]


def test_events_are_those_of_the_event_file(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(5))
    write_events(tmp_path / "run", EVENTS[0])
    write_events(tmp_path / "run", *EVENTS)  # the step once more, with what came later
    assert events_in(tmp_path) == ([*EVENTS], 0)
    assert {*read_events(tmp_path / "run")} == {*EVENTS}
    assert Log(tmp_path).index()["runs"][0]["problems"] == []


def test_a_run_without_events_answers_none_and_no_run_is_not_there(log: Log) -> None:
    for run in ("one", "plain"):
        assert json.loads(log.get("events", run=run).data) == {"events": [], "left_out": 0}
    assert log.get("events", run="none").status_code == 404 and log.get("events").status_code == 400


def test_a_run_of_events_alone_is_listed(tmp_path: Path) -> None:
    write_events(tmp_path / "run", *EVENTS)
    (run,) = Log(tmp_path).index()["runs"]
    assert run["name"] == "run" and not run["statistics"] and events_in(tmp_path) == ([*EVENTS], 0)


def test_a_resumed_run_keeps_the_exception_that_ended_it(tmp_path: Path) -> None:
    write_events(tmp_path / "run", EVENTS[0], EVENTS[3])
    resumed = EventRow("train", 2, "resumed", "training goes on from step 2")
    write_events(tmp_path / "run", resumed, noted_by="two")
    assert events_in(tmp_path)[0] == [EVENTS[0], resumed, EVENTS[3]]


def test_events_of_another_form_are_left_out_and_counted(tmp_path: Path) -> None:
    content = json.dumps({"version": 1, "kind": "event", "stage": "train"}).encode()
    bad = [texts([["a", "b", "c"]], 3), tensor([[1.0] * 4]), tensor([1.0]), texts([], 4)]
    for step, value in enumerate([*bad, texts([["x" * 5000, "b", "c", "d"]])]):
        write_tensor(tmp_path / "run", "events/#1", content, value, step)
    found, left_out = events_in(tmp_path)
    assert found == [EventRow("train", 4, "x" * 1000, "b", "c", "d")] and left_out == 3


def test_so_many_events_are_passed_on(tmp_path: Path) -> None:
    content = json.dumps({"version": 1, "kind": "event", "stage": "train"}).encode()
    write_tensor(tmp_path / "run", "events/#1", content, texts([["a", str(row), "", ""] for row in range(6000)]))
    found, left_out = events_in(tmp_path)
    assert [row.text for row in found] == [str(row) for row in range(5000)] and left_out == 1000


def test_of_a_resumed_run_the_repeated_steps_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(6))
    write_run(tmp_path / "run", range(3, 8), value=lambda name, layer, step: 100.0 + step)
    _, arrays = Log(tmp_path).unpacked("matrix", run="run", **RMS)
    assert arrays["steps"].tolist() == [*range(8)]
    assert (arrays["values"][3:] == np.arange(103, 108)[:, None]).all() and (arrays["values"][:3] < 100).all()


def test_of_a_repeated_histogram_the_last_counts(tmp_path: Path) -> None:
    content = schema(kind="histogram", layer="h.0", name="histogram", edges=[0.0, 1.0, 2.0])
    for step, counts in ((0, [1.0, 0.0]), (3, [2.0, 0.0]), (3, [5.0, 6.0])):
        write_tensor(tmp_path / "run", "activations/h.0#1", content, tensor(counts), step)
    _, arrays = Log(tmp_path).unpacked("histogram", run="run", layer="h.0", **{**RMS, "name": "histogram"})
    assert arrays["steps0"].tolist() == [0, 3] and arrays["counts0"].tolist() == [[1, 0], [5, 6]]


def test_layers_of_several_detectors_of_one_name_stand_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path / "run", range(3), layers=("h.10", "h.2"), names=("rms",))
    write_run(tmp_path / "run", range(2, 5), layers=("h.9",), names=("rms",))
    header, arrays = Log(tmp_path).unpacked("matrix", run="run", **RMS)
    assert header["layers"] == ["h.9", "h.10", "h.2"]  # of each detector the model's order
    assert np.isnan(arrays["values"]).tolist() == [
        *([True, False, False], [True, False, False], [False, False, False]),
        *([False, True, True], [False, True, True]),
    ]


def test_tensorboard_shows_the_tab_as_active_where_there_is_something(tmp_path: Path) -> None:
    write_plain(tmp_path / "log" / "run", range(2))
    assert Log(tmp_path / "log").plugin.is_active()
    assert not Log(tmp_path / "none").plugin.is_active()
