"""Compact tensors: written to event files, read back by TensorBoard's own code and by ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.context import RequestContext
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import (
    DetectorReadings,
    HistogramRow,
    HistogramTable,
    HistoryRow,
    HistoryTable,
    LoggedStep,
    compact,
    read_compact,
    read_compact_histograms,
    shown,
    write,
    write_event,
)
from mi_crow_lightning.loggers import compact_tensors as tensors_module
from mi_crow_lightning.loggers.compact_tensors import PLUGIN
from mi_crow_lightning.metrics.histogram import Histogram

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

LAYERS = ("h.0", "odd/na#me", "h.2")
EDGES = (-1.0, 0.0, 0.1, 2.0)


def histogram(*counts: float) -> Histogram:
    return Histogram(EDGES, counts, -1.0, 2.0, sum(counts), 0.0, 0.0)


def logged(step: int, *readings: Reading, stage: str = "train", layers: tuple[str, ...] = LAYERS) -> LoggedStep:
    return LoggedStep(stage, step, [DetectorReadings(readings, layers, "h.*")])


def rms(layer: str, value: float) -> Reading:
    return Reading(layer, "rms", value)


def counted(layer: str, *counts: float, name: str = "histogram") -> Reading:
    return Reading(layer, name, histogram(*counts), "histogram")


def write_steps(folder: Path, *steps: LoggedStep) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            write_event(writer, [], step.step, compact(step))


def values(folder: Path) -> list[Any]:
    """Every value of ours, as TensorBoard loads it."""
    loaded = [event for file in sorted(folder.glob("events*")) for event in EventFileLoader(str(file)).Load()]
    return [value for event in loaded for value in event.summary.value]


def test_one_tensor_a_statistic_and_one_a_histogram_in_one_event(tmp_path: Path) -> None:
    readings = [Reading(layer, name, 1.0) for layer in LAYERS for name in ("mean", "rms")]
    readings += [counted(layer, 1.0, 0.0, 2.0) for layer in LAYERS]
    write_steps(tmp_path, logged(5, *readings))
    (file,) = tmp_path.glob("events*")
    (event,) = (event for event in EventFileLoader(str(file)).Load() if event.summary.value)
    assert event.step == 5
    shapes = {value.tag.rpartition("#")[0]: make_ndarray(value.tensor).shape for value in event.summary.value}
    assert shapes == {
        "activations_mean/": (3,),
        "activations_rms/": (3,),
        **{f"activations/{layer}": (3,) for layer in LAYERS},
    }


def test_tensorboard_reads_tensors_and_schemas(tmp_path: Path) -> None:
    odd = rms("h.2", -math.inf), counted("h.2", 2.0**40 + 1, 0.0, 3.0)
    steps = [logged(step, rms("h.0", step + 0.1), *odd, stage="validate") for step in (3, 7)]
    write_steps(tmp_path, *steps)  # in one file: the names of two of one second may sort the later one first
    events = EventAccumulator(str(tmp_path)).Reload()
    picture, statistic = sorted(events.Tags()["tensors"])
    assert statistic.startswith("activations_rms/val/#") and picture.startswith("activations/val/h.2#")
    read = events.Tensors(statistic)
    assert [event.step for event in read] == [3, 7]
    np.testing.assert_array_equal(
        [make_ndarray(event.tensor_proto) for event in read],
        np.float32([[3.1, math.nan, -math.inf], [7.1, math.nan, -math.inf]]),
    )
    assert make_ndarray(events.Tensors(picture)[0].tensor_proto).tolist() == [2**40 + 1, 0, 3]  # not rounded
    metadata = events.SummaryMetadata(statistic)
    assert (metadata.plugin_data.plugin_name, metadata.data_class) == ("mi_crow_lightning", DATA_CLASS_TENSOR)
    common = {"version": 1, "prefix": "activations", "stage": "validate"}
    assert json.loads(metadata.plugin_data.content) == {
        **common,
        "kind": "statistic",
        "name": "rms",
        "layers": list(LAYERS),
    }
    assert json.loads(events.SummaryMetadata(picture).plugin_data.content) == {
        **common,
        "kind": "histogram",
        "name": "histogram",
        "layer": "h.2",
        "edges": list(EDGES),
    }


def test_the_data_provider_serves_them_to_a_plugin(tmp_path: Path) -> None:
    write_steps(tmp_path, *(logged(step, rms("h.0", 0.5 * step)) for step in range(3)))
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    provider, context = MultiplexerDataProvider(runs, str(tmp_path)), RequestContext()
    ((address, series),) = provider.list_tensors(context, experiment_id="", plugin_name=PLUGIN)["."].items()
    assert series.max_step == 2 and json.loads(series.plugin_content)["layers"] == list(LAYERS)
    data = provider.read_tensors(context, experiment_id="", plugin_name=PLUGIN, downsample=100)["."][address]
    assert [(datum.step, datum.numpy[0]) for datum in data] == [(0, 0.0), (1, 0.5), (2, 1.0)]


NUMBERS = st.floats(width=32) | st.floats()
STEP = st.dictionaries(st.tuples(st.sampled_from(LAYERS), st.sampled_from(["mean", "rms"])), NUMBERS, min_size=1)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), STEP), min_size=1, max_size=4))
def test_numbers_come_back_as_float32(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, dict[tuple[str, str], float]]]
) -> None:
    folder, expected = tmp_path_factory.mktemp("run"), {}
    for i, (stage, values_of) in enumerate(steps):
        step = logged(i, *(Reading(layer, name, value) for (layer, name), value in values_of.items()), stage=stage)
        write_steps(folder, step)
        for tag, reading in step.tagged:
            expected[HistoryRow(stage, i, tag, reading.layer, reading.name, 0.0)] = reading.value
    rows = {row._replace(value=0.0, run=""): row.value for row in read_compact(folder)}
    with np.errstate(over="ignore"):
        rounded = np.array(list(expected.values())).astype(np.float32)
    np.testing.assert_array_equal([rows.pop(row) for row in expected], rounded)
    assert all(map(math.isnan, rows.values()))  # layers that gave nothing in a step in which others did


COUNTS = st.lists(st.integers(0, 2**52).map(float), min_size=3, max_size=3) | st.lists(
    st.floats(0, allow_infinity=False), min_size=3, max_size=3
)


@settings(max_examples=40)
@given(st.lists(COUNTS, min_size=1, max_size=4))
def test_histograms_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, counts: list[list[float]]) -> None:
    folder = tmp_path_factory.mktemp("run")
    readings = [logged(i, counted("h.2", *of_step, name="channels")) for i, of_step in enumerate(counts)]
    write_steps(folder, *readings)
    assert list(read_compact_histograms(folder)) == [
        HistogramRow("train", i, "activations_channels/h.2", "h.2", "channels", EDGES, tuple(of_step), run=folder.name)
        for i, of_step in enumerate(counts)
        if any(of_step)
    ]
    assert list(read_compact(folder)) == []


def test_rows_are_in_the_order_of_steps_and_name_stage_and_tag(tmp_path: Path) -> None:
    first = logged(4, rms("h.0", 1.0), Reading("h.0", "mean", 2.0), layers=("h.0",))
    second = LoggedStep("predict", 1, [DetectorReadings([rms("h.1", 3.0)], ("h.1",), "1", "mlp")])
    write_steps(tmp_path, first, second)
    assert [row._replace(run="") for row in read_compact(tmp_path)] == [
        HistoryRow("train", 4, "activations_rms/h.0", "h.0", "rms", 1.0),
        HistoryRow("train", 4, "activations_mean/h.0", "h.0", "mean", 2.0),
        HistoryRow("predict", 1, "mlp_rms/predict/h.1", "h.1", "rms", 3.0),
    ]


def test_a_schema_is_written_once_a_file(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    for i in range(3):
        write_event(writer, [], i, compact(logged(i, rms("h.0", 1.0), counted("h.0", 1.0, 1.0, 1.0))))
    assert [len(value.metadata.plugin_data.content) > 0 for value in values_after(writer, tmp_path)] == [True] * 2 + [
        False
    ] * 4
    writer.close()  # what is written next opens another file, which has to be readable alone
    write_event(writer, [], 3, compact(logged(3, rms("h.0", 1.0))))
    writer.close()
    first, second = sorted(tmp_path.glob("events*"))
    first.unlink()
    assert [row.step for row in read_compact(tmp_path) if row.layer == "h.0"] == [3]
    assert second.exists()


def values_after(writer: SummaryWriter, folder: Path) -> list[Any]:
    writer.flush()
    return values(folder)


def test_another_schema_is_another_tag(tmp_path: Path) -> None:
    edges = counted("h.0", 1.0, 1.0, 1.0)
    others = Reading("h.0", "histogram", edges.value._replace(edges=(-1.0, 0.0, 0.2, 2.0)), "histogram")  # type: ignore[union-attr]
    steps = [
        logged(0, rms("h.0", 1.0), edges),
        logged(1, rms("h.0", 2.0), others, layers=("h.0", "h.1")),
        logged(2, rms("h.0", 3.0), edges),
    ]
    tags = [[tensor.tag for tensor in compact(step)] for step in steps]
    assert not set(tags[0]) & set(tags[1]) and tags[0] == tags[2]
    write_steps(tmp_path, *steps)
    assert [(row.step, row.value) for row in read_compact(tmp_path) if row.layer == "h.0"] == [(0, 1), (1, 2), (2, 3)]
    assert [row.edges[2] for row in read_compact_histograms(tmp_path)] == [0.1, 0.2, 0.1]


def test_two_detectors_of_one_prefix_keep_their_layers_apart(tmp_path: Path) -> None:
    attention = DetectorReadings([rms("h.0.attn", 1.0)], ("h.0.attn",), "*.attn")
    mlp = DetectorReadings([rms("h.0.mlp", 2.0)], ("h.0.mlp",), "*.mlp")
    write_steps(tmp_path, LoggedStep("train", 0, [attention, mlp]))
    assert [(row.layer, row.value) for row in read_compact(tmp_path)] == [("h.0.attn", 1.0), ("h.0.mlp", 2.0)]


def test_a_reading_of_something_that_is_no_layer(tmp_path: Path) -> None:
    write_steps(tmp_path, logged(0, rms("all together", 4.0)))
    assert [(row.layer, row.value) for row in read_compact(tmp_path)] == [("all together", 4.0)]


def test_edges_that_do_not_fit_the_bins_are_refused_by_tag() -> None:
    with pytest.raises(ValueError, match=r"'activations/h\.0#\w+' has 4 edges and 2 bins"):
        compact(logged(0, counted("h.0", 1.0, 1.0)))


def test_a_hundred_layers_are_a_few_kilobytes_a_step(tmp_path: Path) -> None:
    layers = tuple(f"model.model.layers.{i}" for i in range(100))
    readings = [Reading(layer, f"statistic_{i}", 0.1) for layer in layers for i in range(8)]
    with SummaryWriter(str(tmp_path)) as writer:
        sizes = []
        for i in range(3):
            step = LoggedStep("train", i, [DetectorReadings(readings, layers, "block:*")])
            write_event(writer, shown(step, "summary"), i, compact(step))
            writer.flush()
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert sizes[2] - sizes[1] < 5500  # 3200 of them are the numbers
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1]


def test_tensorboardx_gets_the_same_tensors(tmp_path: Path) -> None:
    tensorboardx = pytest.importorskip("tensorboardX")
    step = logged(2, rms("h.0", 0.1), counted("h.0", 1.0, 0.0, 2.0))
    with tensorboardx.SummaryWriter(str(tmp_path)) as writer:
        write([type("Logger", (), {"experiment": writer})()], step, "none")
    (row, *_), (drawn,) = read_compact(tmp_path), read_compact_histograms(tmp_path)
    assert (row.value, drawn.counts) == (pytest.approx(0.1, rel=1e-7), (1, 0, 2))
    assert {value.metadata.data_class for value in values(tmp_path)} == {DATA_CLASS_TENSOR}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    write([TensorBoardLogger(tmp_path)], logged(0, rms("h.0", 1.0)), "none")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("blocks", [(0, 1, 2), (0, None, 2), (None, None, None)])
def test_blocks_come_back(tmp_path: Path, blocks: tuple[int | None, ...]) -> None:
    readings = [rms("h.0", 1.0), rms("h.2", 2.0), rms("all", 3.0), counted("h.2", 1.0, 0.0, 2.0)]
    detectors = [DetectorReadings(part, LAYERS, "h.*", blocks=blocks) for part in (readings[:2], readings[2:])]
    step = LoggedStep("train", 0, detectors)
    write_steps(tmp_path, step)
    found = {row.layer: row.block for row in read_compact(tmp_path)}
    assert found == {**dict(zip(LAYERS, blocks, strict=True)), "all": None}
    assert [row.block for row in read_compact_histograms(tmp_path)] == [blocks[2]]
    with_blocks = [tensor for tensor in compact(step) if '"block' in tensor.schema]
    assert len(with_blocks) == (0 if set(blocks) == {None} else 2)  # where none is known, the tags are as they were


def test_the_run_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_steps(tmp_path / "version_3", logged(0, rms("h.0", 1.0), counted("h.2", 1.0, 0.0, 2.0)))
    monkeypatch.chdir(tmp_path / "version_3")
    for folder in (tmp_path / "version_3", "../version_3", "."):
        assert {row.run for row in read_compact(folder)} == {"version_3"}
        assert {row.run for row in read_compact_histograms(folder)} == {"version_3"}


def test_the_whole_table_is_there_however_far_the_iteration_is(tmp_path: Path) -> None:
    write_steps(tmp_path, *(logged(i, rms("h.0", i), counted("h.2", 1.0, 0.0, i)) for i in range(3)))
    rows, histograms = read_compact(tmp_path), read_compact_histograms(tmp_path)
    assert next(rows).step == next(histograms).step == 0
    assert (type(rows.table()), type(histograms.table())) == (HistoryTable, HistogramTable)
    assert [row.step for row in histograms.table()] == [0, 1, 2] and histograms.to_pandas().step.tolist() == [0, 1, 2]
    frame = rows.to_pandas()
    assert len(frame) == len(rows.table()) == 9
    assert frame.query("layer == 'h.0'").value.tolist() == [0.0, 1.0, 2.0]
    assert (next(rows).layer, [row.step for row in histograms]) == (LAYERS[1], [1, 2])  # it went on where it was


def test_files_are_shown_by_their_first_rows(tmp_path: Path) -> None:
    hostile = "<script>\u202e"
    write_steps(tmp_path, *(logged(i, rms(hostile, i), layers=(hostile,)) for i in range(50)))
    rows = read_compact(tmp_path)
    assert repr(rows).startswith(f"<numbers of 1 event file in {str(tmp_path)!r}, 0.00")
    html = rows._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;\\u202e" in html and html.count("<tr>") == 11
    assert [row.step for row in rows] == list(range(50))
    (file,) = tmp_path.glob("events*")
    file.write_bytes(bytes([*file.read_bytes()[:-1], 0xFF]))
    assert "checksum" not in read_compact(tmp_path)._repr_html_()  # the damage lies behind the rows that are shown
    file.write_bytes(b"\0" * 100)
    assert "is damaged at byte 0" in read_compact(tmp_path)._repr_html_()
    assert read_compact(tmp_path)._repr_html_().count("<tr>") == 0


@pytest.mark.documents("reliability/an-event-file-was-cut-off")
def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    write_steps(tmp_path, *(logged(i, rms("h.0", 1.0), layers=("h.0",)) for i in range(5)))
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-10])
    assert [row.step for row in read_compact(tmp_path)] == [0, 1, 2, 3]


def test_a_folder_without_event_files_names_those_below(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no event file of TensorBoard in '.*'$"):
        read_compact(tmp_path)
    write_steps(tmp_path / "version_3", logged(0, rms("h.0", 1.0)))
    with pytest.raises(FileNotFoundError, match=r"there are event files in .*version_3"):
        read_compact_histograms(tmp_path)


def test_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "VERSION", 2)
    write_steps(tmp_path, logged(0, Reading("h.0", "of version 2", 1.0)))
    with pytest.raises(ValueError, match="compact tensors have version 2, but this release reads version 1"):
        list(read_compact(tmp_path))
