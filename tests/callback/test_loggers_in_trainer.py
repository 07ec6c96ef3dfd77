"""What a run leaves in its loggers, read back from disk."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from mi_crow_lightning import (
    ActivationStatistics,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    Schedule,
)
from mi_crow_lightning.loggers import read_compact, read_compact_histograms
from mi_crow_lightning.metrics import STATISTICS
from tests.callback.runs import STAGES, data_of, fit, module_of, run
from tests.models import Module, trainer

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

EVERY = Schedule()
SEGMENTS = {"train": "", "validate": "val/", "test": "test/", "predict": "predict/"}


def watching(**options: Any) -> HookCallback:
    return HookCallback(ActivationStatistics("block:*", statistics=["mean", "std"], schedule=EVERY, **options))


def expected_tags(*stages: str, prefix: str = "activations") -> set[str]:
    layers = [f"model.model.layers.{i}" for i in range(4)]
    sections = (prefix, f"{prefix}_mean", f"{prefix}_std")
    return {f"{section}/{SEGMENTS[stage]}{layer}" for section in sections for stage in stages for layer in layers}


def accumulated(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def tags(folder: Path) -> set[str]:
    found = accumulated(folder).Tags()
    return {tag for kind in ("scalars", "histograms") for tag in found[kind]}


def events(folder: Path) -> list[tuple[int, set[str]]]:
    """Step and tags, without those of the compact tensors, of every event that holds values of ours."""
    loaded = [event for file in sorted(folder.glob("events*")) for event in EventFileLoader(str(file)).Load()]
    pairs = [(event.step, {v.tag for v in event.summary.value if "#" not in v.tag}) for event in loaded]
    return [(step, found) for step, found in pairs if any(tag.startswith("activations") for tag in found)]


@pytest.mark.documents("compatibility/tensorboard-csv-none/detectors")
def test_tensorboard_after_a_fit(tmp_path: Path) -> None:
    logger, watch = TensorBoardLogger(tmp_path), watching()
    run("fit", trainer(watch, logger=logger, log_every_n_steps=2, max_epochs=2), module_of("llama"), data_of("llama"))
    folder = Path(logger.log_dir)
    ours = {tag for tag in tags(folder) if tag.startswith("activations")}
    assert ours == expected_tags("train", "validate")
    # One event a logged step, with everything in it.
    train, evaluated = expected_tags("train"), expected_tags("validate")
    assert events(folder) == [
        (1, train),
        (3, train),
        (4, evaluated),
        (5, train),
        (7, train),
        (9, train),
        (9, evaluated),
    ]
    found = accumulated(folder)
    for row in watch.history():
        values = {event.step: event.value for event in found.Scalars(row.tag)}
        assert values[row.step] == pytest.approx(row.value, rel=1e-6)


def test_the_curves_of_tensorboard_lie_under_those_of_lightning(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(module_of("llama"), data_of("llama") * 2, watching(), logger=logger, log_every_n_steps=3)
    found = accumulated(Path(logger.log_dir))
    mean = "activations_mean/model.model.layers.0"
    assert [event.step for event in found.Scalars(mean)] == [event.step for event in found.Scalars("loss")] == [2, 5, 8]


def test_the_layout_has_a_chart_for_each_statistic(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(module_of("llama"), data_of("llama"), watching(), watching(name="again"), logger=logger)
    (layout,) = accumulated(Path(logger.log_dir)).Tensors("custom_scalars__config__")[-1:]
    text = layout.tensor_proto.string_val[0].decode(errors="replace")
    for words in ("activations_mean/", "activations_std/", "again_mean/", "again_std/"):
        assert words in text
    assert "histogram" not in text


@pytest.mark.documents("compatibility/fit-validate-test-predict-in-any-order/logging")
@pytest.mark.parametrize("stage", STAGES[1:])
def test_evaluations_and_predictions_write_too(tmp_path: Path, stage: str) -> None:
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")]
    run(stage, trainer(watching(), logger=loggers), module_of("llama"), data_of("llama"))
    folder, expected = Path(loggers[0].log_dir), expected_tags(stage)
    assert {tag for tag in tags(folder) if tag.startswith("activations")} == expected
    assert [step for step, _ in events(folder)] == [0 if stage == "validate" else 5]
    assert set(_columns(tmp_path / "csv")) >= {tag for tag in expected if not tag.startswith("activations/")}


def _columns(folder: Path) -> dict[str, list[float]]:
    (file,) = folder.rglob("metrics.csv")
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


@pytest.mark.documents("compatibility/tensorboard-csv-none/logging")
def test_several_loggers_get_the_same_numbers(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "second")]
    watch = watching()
    fit(module_of("llama"), data_of("llama"), watch, logger=loggers)
    first, second = _columns(tmp_path / "csv"), _columns(tmp_path / "second")
    assert first == second and not any(tag.startswith("activations/") for tag in first)
    history: dict[str, list[float]] = {}
    for row in watch.history():
        history.setdefault(row.tag, []).append(row.value)
    assert {tag: first[tag] for tag in history} == {tag: pytest.approx(values) for tag, values in history.items()}
    assert set(history) == {tag for tag in expected_tags("train") if not tag.startswith("activations/")}


@pytest.mark.documents("compatibility/tensorboard-csv-none/logging")
def test_without_a_logger_the_history_has_the_numbers(tmp_path: Path) -> None:
    watch = watching()
    fit(module_of("llama"), data_of("llama"), watch, logger=False, default_root_dir=tmp_path)
    assert {row.tag for row in watch.history()} == {tag for tag in expected_tags("train") if "s/" not in tag[:13]}
    assert [row.step for row in watch.history()] == sorted([0, 1, 2, 3, 4] * 8)
    assert list(tmp_path.iterdir()) == []


def test_the_readings_of_held_activations(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    watch = HookCallback(LayerActivationDetector("model.0", name="held"))
    fit(module_of(), data_of(), watch, logger=logger)
    found = {tag for tag in tags(Path(logger.log_dir)) if tag.startswith("held")}
    assert found == {"held/model.0", "held_mean/model.0", "held_std/model.0", "held_token_norm/model.0"}


def test_a_capture_is_read_in_the_stage_it_was_made_in_and_once() -> None:
    keep = LayerActivationDetector("model.0", schedule=Schedule(stages="validate"))
    watch = HookCallback(detectors=keep)
    module = module_of()
    run("fit", trainer(watch, max_epochs=2, num_sanity_val_steps=0), module, data_of())
    assert {row.stage for row in watch.history()} == {"validate"}
    assert len([row for row in watch.history() if row.name == "mean"]) == 2
    assert keep.get_captured() is not None


def test_channels_have_a_histogram_of_their_own(tmp_path: Path) -> None:
    watch = HookCallback(ActivationStatistics("model.0", statistics=["rms"], per_channel=True))
    runner = fit(module_of(), data_of(), watch, logger=TensorBoardLogger(tmp_path), log_every_n_steps=5)
    log = accumulated(Path(runner.log_dir))
    assert set(log.Tags()["histograms"]) == {"activations/model.0", "activations_channel_rms/model.0"}
    (written,) = log.Histograms("activations_channel_rms/model.0")
    assert written.histogram_value.num == 32  # one number a channel
    (rms,) = [row.value for row in watch.history()]
    assert written.histogram_value.sum_squares / 32 == pytest.approx(rms**2, rel=1e-6)


def deep(layers: int) -> Module:
    """A model of so many layers, ``model.0`` and so on."""
    return Module(nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers))))


SECTIONS = ("activations_mean", "activations_std")
SUMMARY = {f"{section}/model.*/{word}" for section in SECTIONS for word in ("min", "median", "max")}


@pytest.mark.parametrize(("scalars", "expected"), [("summary", SUMMARY), ("none", set())])
def test_without_all_scalars_the_numbers_are_in_history_metrics_and_file(
    tmp_path: Path, scalars: Any, expected: set[str]
) -> None:
    board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")
    detector = ActivationStatistics("model.*", statistics=["mean", "std"])
    watch = HookCallback(detector, scalars=scalars, monitor=["*"])
    runner = fit(deep(6), data_of(), watch, logger=[board, table], log_every_n_steps=2)
    found = accumulated(Path(board.log_dir)).Tags()
    assert {tag for tag in found["scalars"] if tag.startswith("activations")} == expected
    assert found["histograms"] == [] and ("custom_scalars__config__" in found["tensors"]) == bool(expected)
    assert {column for column in _columns(tmp_path / "csv") if column.startswith("activations")} == expected
    rows = watch.history()
    assert len(rows) == 2 * 6 * 2
    written = {(row.step, row.tag): row.value for row in read_compact(board.log_dir)}
    assert written == {(row.step, row.tag): pytest.approx(row.value, rel=1e-6) for row in rows}
    last = {row.tag: pytest.approx(row.value, rel=1e-6) for row in rows}
    assert {tag: value.item() for tag, value in runner.callback_metrics.items() if tag in last} == last
    drawn = list(read_compact_histograms(board.log_dir))
    assert [row.step for row in drawn] == [1] * 6 + [3] * 6
    assert {sum(row.counts) for row in drawn} == {4 * 8}


def test_a_summary_is_over_the_layers_of_the_step(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    watch = HookCallback(ActivationStatistics("model.*", statistics=["std"]), scalars="summary")
    fit(deep(6), data_of(), watch, logger=logger)
    found = accumulated(Path(logger.log_dir))
    for step in range(5):
        values = [row.value for row in watch.history() if row.step == step]
        expected = {"min": min(values), "median": np.median(values), "max": max(values)}
        for word, value in expected.items():
            assert found.Scalars(f"activations_std/model.*/{word}")[step].value == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "tags", "histograms"),
    [
        ({}, 7 * 3, 0),  # 70 layers x 8 readings
        ({"scalars": "all"}, 13 * 70, 70),  # nonfinite_batch has no reading where all is finite
        ({"scalars": "summary"}, 13 * 3, 0),
        ({"scalars": ["rms", "kurtosis"]}, 2 * 70, 0),
        ({"scalars": ["histogram"]}, 0, 70),
    ],
)
def test_many_tags_become_a_summary_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], tags: int, histograms: int
) -> None:
    logger, watch = TensorBoardLogger(tmp_path), HookCallback(ActivationStatistics("model.*"), **options)
    with caplog.at_level(logging.INFO):
        fit(deep(70), data_of(), watch, logger=logger, log_every_n_steps=5)
    said = [record.message for record in caplog.records if "tags a stage" in record.message]
    words = "HookCallback: 560 tags a stage are more than 500, so loggers show min, median and max over the layers"
    assert [message[: len(words)] for message in said] == ([] if options else [words])
    found = accumulated(Path(logger.log_dir)).Tags()
    assert len([tag for tag in found["scalars"] if tag.startswith("activations")]) == tags
    assert len(found["histograms"]) == histograms


def test_few_tags_are_all_shown_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger, watch = TensorBoardLogger(tmp_path), HookCallback(ActivationStatistics("model.*"))
    with caplog.at_level(logging.INFO):
        fit(deep(62), data_of(), watch, logger=logger, log_every_n_steps=5)
        fit(deep(70), data_of(), HookCallback(ActivationStatistics("model.*")), logger=False, log_every_n_steps=5)
    assert not [record for record in caplog.records if "tags a stage" in record.message]
    assert len(accumulated(Path(logger.log_dir)).Tags()["histograms"]) == 62


FEW = ("mean", "std", "rms", "abs_max", "token_norm_mean", "dead_share", "nonfinite_count")


@pytest.mark.parametrize(
    ("chosen", "scalars", "expected"),
    [
        (None, "auto", FEW),
        (["kurtosis", "rms"], "auto", ("kurtosis", "rms")),  # what is asked for by name is shown
        (None, "all", [name for name in STATISTICS if name != "nonfinite_batch"]),
        (None, ["rms", "max"], ("rms", "max")),
    ],
)
def test_few_statistics_are_shown_and_all_are_kept(tmp_path: Path, chosen: Any, scalars: Any, expected: Any) -> None:
    board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")
    detectors = [ActivationStatistics("model.*", statistics=chosen), ProjectionDetector("model.1", torch.ones(8))]
    watch = HookCallback(detectors, scalars=scalars)
    fit(deep(3), data_of(), watch, logger=[board, table], log_every_n_steps=5)
    numbers = {f"activations_{name}/model.{i}" for name in expected for i in range(3)}
    numbers |= {f"projection_{name}/model.1" for name in ("mean", "std", "min", "max", "cosine")}
    found = accumulated(Path(board.log_dir)).Tags()
    ours = ("activations", "projection")
    assert {tag for tag in found["scalars"] if tag.startswith(ours)} == numbers
    assert {column for column in _columns(tmp_path / "csv") if column.startswith(ours)} == numbers
    drawn = isinstance(scalars, str)
    assert len(found["histograms"]) == (3 if drawn else 0)
    kept = {row.tag for row in read_compact(board.log_dir)}
    assert kept == {row.tag for row in watch.history()} and len(kept) == (2 if chosen else 13) * 3 + 5
    assert len(list(read_compact_histograms(board.log_dir))) == 3
