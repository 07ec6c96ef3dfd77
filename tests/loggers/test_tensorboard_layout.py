"""TensorBoard's page of Custom Scalars, as its own code reads the layout that was written."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, tag, write, write_event, write_layout
from mi_crow_lightning.loggers import layout as layout_module
from mi_crow_lightning.loggers.layout_of_step import lay_out
from mi_crow_lightning.loggers.scalar_choice import resolve_scalars
from tests.loggers.written import Board, events, scalar

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

LAYERS = ("h.0", "h.10", "odd/name", "value", "test")
STAGES = ("train", "validate", "test", "predict")


def write_all(writer: SummaryWriter, prefixes: tuple[str, ...]) -> None:
    keys = [(p, s, n, y) for p in prefixes for s in STAGES for n in ("mean", "mean_abs") for y in LAYERS]
    write_event(writer, [scalar(tag(Reading(y, n, 0.0), s, p), 0.0) for p, s, n, y in keys], 1)


def test_each_chart_shows_the_layers_of_its_statistic_and_stage(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_all(writer, ("a.b", "aXb"))
        write_layout(writer, {"a.b": ["mean", "mean_abs"]}, ["train", "validate"])
    charts = Board(tmp_path).charts()
    assert {category: list(of_one) for category, of_one in charts.items()} == {
        "a.b": ["mean", "mean_abs"],
        "a.b (val)": ["mean", "mean_abs"],
    }
    assert charts["a.b"]["mean"] == sorted(f"a.b_mean/{layer}" for layer in LAYERS)
    assert charts["a.b (val)"]["mean_abs"] == sorted(f"a.b_mean_abs/val/{layer}" for layer in LAYERS)


@pytest.mark.parametrize("order", [1, -1])
def test_other_stages_come_after_training_and_are_closed(tmp_path: Path, order: int) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for stage in ("train", "validate", "test")[::order]:
            write_layout(writer, {"a": ["mean"], "b": ["mean"]}, [stage])
    found = [(one["title"], one.get("closed", False)) for one in Board(tmp_path).layout()["category"]]
    assert found == [("a", False), ("b", False), *((f"{p} ({s})", True) for s in ("val", "test") for p in "ab")]


def test_without_training_all_are_open(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_layout(writer, {"a": ["mean"]}, ["validate"])
    (category,) = Board(tmp_path).layout()["category"]
    assert category["title"] == "a (val)" and not category.get("closed", False)


def test_a_summary_is_a_band_of_the_tags_that_are_written(tmp_path: Path) -> None:
    attention = DetectorReadings([Reading(f"h.{i}", "rms", i) for i in range(4)], tuple("0123"), "*.attn")
    mlp = DetectorReadings([Reading(f"m.{i}", "rms", i) for i in range(4)], tuple("0123"), "*.mlp")
    few = DetectorReadings([Reading("x", "share", 2.0)], ("x",), "x", "own")
    logger = type("Logger", (), {})()
    with SummaryWriter(str(tmp_path)) as logger.experiment:
        for index in (0, 1):
            step = LoggedStep("validate", 3, [attention, mlp, few], index)
            write([logger], step, "summary")
            if index == 0:
                lay_out(step, [logger], resolve_scalars("summary"), dataloaders=2)
    found = {one["title"]: one["chart"] for one in Board(tmp_path).layout()["category"]}
    assert {category: [chart["title"] for chart in charts] for category, charts in found.items()} == {
        "activations (val)": ["rms *.attn", "rms *.mlp"],
        "own (val)": ["share"],
    }
    written = {value.tag for event in events(tmp_path) for value in event.summary.value}
    for chart, signature in zip(found["activations (val)"], ("*.attn", "*.mlp"), strict=True):
        for index, series in enumerate(chart["margin"]["series"]):
            words = {"lower": "min", "value": "median", "upper": "max"}
            assert series == {
                end: f"activations_rms/val/{signature}/{word}/dataloader_idx_{index}" for end, word in words.items()
            }
            assert set(series.values()) < written
        assert len(chart["margin"]["series"]) == 2
    (own,) = found["own (val)"]
    assert re.search(own["multiline"]["tag"][0], "own_share/val/x/dataloader_idx_0")


def test_several_callbacks_in_one_run_all_get_their_charts(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_layout(writer, {"first": ["mean"]}, ["train"])
        write_all(writer, ("first", "second"))
        write_layout(writer, {"second": ["mean"]}, ["test"])
        write_layout(writer, {"first": ["mean_abs"]}, ["train"])
    charts = Board(tmp_path).charts()
    assert {title: list(those) for title, those in charts.items()} == {
        "first": ["mean", "mean_abs"],
        "second (test)": ["mean"],
    }
    assert all(len(tags) == len(LAYERS) for those in charts.values() for tags in those.values())


def test_tensorboard_shows_only_the_last_layout_of_a_run(tmp_path: Path) -> None:
    """The fact `write_layout` is built on: without joining, the first callback's charts would be lost."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_custom_scalars({"first": {"c": ["Multiline", ["x"]]}})
        writer.add_custom_scalars({"second": {"c": ["Multiline", ["x"]]}})
    assert [category["title"] for category in Board(tmp_path).layout()["category"]] == ["second"]


def test_the_regexes_reach_the_page_whole(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_layout(writer, {"a": ["mean"]}, ["train", "validate"])
    categories = Board(tmp_path).layout()["category"]
    train, validate = (re.compile(one["chart"][0]["multiline"]["tag"][0]) for one in categories)
    assert train.search("a_mean/h.0") and not train.search("x_a_mean/h.0") and not train.search("a_mean/val/h.0")
    assert validate.search("a_mean/val/h.0") and not validate.search("a_mean/h.0")


def test_an_unknown_stage_leaves_the_layout_as_it_was(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_layout(writer, {"a": ["mean"]}, ["train"])
        with pytest.raises(ValueError, match="stage='val' is not known"):
            write_layout(writer, {"b": ["mean"]}, ["val"])
        write_layout(writer, {"c": ["mean"]}, ["train"])
    assert [category["title"] for category in Board(tmp_path).layout()["category"]] == ["a", "c"]


def test_layouts_go_with_their_writer(tmp_path: Path) -> None:
    gc.collect()  # writers of earlier tests
    before = len(layout_module._layouts)
    with SummaryWriter(str(tmp_path)) as writer:
        write_layout(writer, {"a": ["mean"]})
        assert len(layout_module._layouts) == before + 1
    del writer
    gc.collect()
    assert len(layout_module._layouts) == before
