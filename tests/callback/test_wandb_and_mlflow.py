"""Weights & Biases and MLflow, with their real loggers, offline: what they wrote to disk is read back."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule
from mi_crow_lightning.errors import TagConflict
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, read_compact_histograms, write
from mi_crow_lightning.metrics.histogram import Histogram
from tests.callback.runs import STAGES, data_of, module_of, run, told
from tests.models import Module, trainer

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

STEP = "trainer/global_step"


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    package = pytest.importorskip("wandb")
    yield package
    package.teardown()


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # refused by default since 3.x, and quicker than a database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    return pytest.importorskip("mlflow")


def mlflow_logger(folder: Path) -> MLFlowLogger:
    return MLFlowLogger(tracking_uri=f"file:{folder / 'mlruns'}")


def wandb_rows(package: Any, folder: Path) -> list[dict[str, Any]]:
    """What was logged, a dict a call; the parts of a histogram lie under its own dict."""
    package.finish()
    return [_row(record.history.item) for record in wandb_records(folder) if record.history.item]


def _row(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        *path, key = item.nested_key or [item.key]
        inner = row.setdefault(path[0], {}) if path else row
        inner[key] = json.loads(item.value_json)
    return row


def wandb_records(folder: Path) -> list[Any]:
    """The records of a finished run; another process writes them, and the run's end last."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(600):
        records = [Record.FromString(data) for data in leveldb_records(file.read_bytes())]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    raise AssertionError(f"W&B did not finish {file}")


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log file in LevelDB's format, after the seven bytes that W&B begins it with."""
    at, record = 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        if at + 7 > len(data) or len(data) < at + 7 + struct.unpack_from("<H", data, at + 4)[0]:
            return  # not all of it is there yet
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def mlflow_metrics(logger: MLFlowLogger) -> dict[str, list[tuple[int, float]]]:
    client, run_id = logger.experiment, logger.run_id
    names = client.get_run(run_id).data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}


def history_of(watch: HookCallback) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in watch.history():
        found.setdefault(row.tag, []).append((row.step, pytest.approx(row.value, rel=1e-6)))
    return found


@pytest.mark.documents("compatibility/w-b-mlflow-offline/detectors")
@pytest.mark.parametrize("stage", STAGES)
def test_all_loggers_at_once_get_the_numbers_of_every_stage(
    tmp_path: Path, wandb: Any, mlflow: Any, stage: str
) -> None:
    board, runs = TensorBoardLogger(tmp_path / "board"), mlflow_logger(tmp_path)
    loggers = [WandbLogger(save_dir=tmp_path, offline=True), runs, CSVLogger(tmp_path / "csv"), board]
    watch = HookCallback(ActivationStatistics("block:*", statistics=["mean", "std"], schedule=Schedule()))
    run(stage, trainer(watch, logger=loggers, log_every_n_steps=2), module_of("llama"), data_of("llama"))
    expected = history_of(watch)
    assert len(expected) == (16 if stage == "fit" else 8)
    ours = {name: of_name for name, of_name in mlflow_metrics(runs).items() if name.startswith("activations_")}
    assert ours == expected
    found: dict[str, list[tuple[int, float]]] = {}
    histograms = []
    for row in wandb_rows(wandb, tmp_path):
        numbers = {key: value for key, value in row.items() if key.startswith("activations_")}
        for key, value in numbers.items():
            found.setdefault(key, []).append((row[STEP], value))
        histograms += [(row[STEP], key, sum(h["values"])) for key, h in row.items() if key.startswith("activations/")]
    assert found == expected
    drawn = read_compact_histograms(board.log_dir)
    assert sorted(histograms) == sorted((row.step, row.tag, sum(row.counts)) for row in drawn) != []


@pytest.mark.documents("compatibility/w-b-mlflow-offline/logging")
def test_histograms_of_wandb_are_drawn_as_those_of_tensorboard(tmp_path: Path, wandb: Any) -> None:
    histogram = Histogram((-4.0, -1.0, 0.0, 1.0, 4.0), (0.0, 3.0, 0.0, 5.0), -0.5, 2.0, 8.0, 2.0, 11.0)
    readings = [Reading("h.0", "histogram", histogram, "histogram"), Reading("h.0", "rms", 0.5)]
    readings.append(Reading("h.1", "histogram", histogram._replace(counts=(0.0,) * 4), "histogram"))
    step = LoggedStep("train", 7, [DetectorReadings(readings, ("h.0", "h.1"), "h.*")])
    write([WandbLogger(save_dir=tmp_path, offline=True, prefix="mine")], step)
    (row,) = wandb_rows(wandb, tmp_path)
    assert {key: value for key, value in row.items() if not key.startswith("_")} == {
        STEP: 7,
        "mine-activations_rms/h.0": 0.5,
        "mine-activations/h.0": {"_type": "histogram", "values": [3, 0, 5], "bins": [-0.5, 0, 1, 2]},
    }


def test_a_summary_goes_to_wandb_and_mlflow_under_names_that_they_take(tmp_path: Path, wandb: Any, mlflow: Any) -> None:
    runs = mlflow_logger(tmp_path)
    watch = HookCallback(ActivationStatistics("block:*", statistics=["mean"]), scalars="summary")
    loggers = [WandbLogger(save_dir=tmp_path, offline=True), runs]
    run("validate", trainer(watch, logger=loggers), module_of("llama"), data_of("llama"))
    values = sorted(row.value for row in watch.history())
    assert len(values) == 4
    expected = [values[0], (values[1] + values[2]) / 2, values[3]]
    summary = [mlflow_metrics(runs)[f"activations_mean/val/block__/{word}"] for word in ("min", "median", "max")]
    assert summary == [[(0, pytest.approx(value))] for value in expected]
    (row,) = (row for row in wandb_rows(wandb, tmp_path) if "activations_mean/val/block:*/max" in row)
    assert [row[f"activations_mean/val/block:*/{word}"] for word in ("min", "median", "max")] == pytest.approx(expected)
    assert not [key for key in row if key.startswith("activations/")]


class Saving(Module):
    """A module that keeps its hyperparameters."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(module_of().model)
        self.save_hyperparameters()


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_the_settings_of_hooks_are_beside_the_hyperparameters(
    tmp_path: Path, wandb: Any, mlflow: Any, stage: str
) -> None:
    board, runs = WandbLogger(save_dir=tmp_path, offline=True), mlflow_logger(tmp_path)
    steer = ScaleController("model.0", 0.5, strength=2.0, hook_id="half")
    run(stage, trainer(HookCallback(controllers=steer), logger=[board, runs]), Saving(), data_of())
    ours = {"hooks/0/class": "ScaleController", "hooks/0/id": "half", "hooks/0/strength": 2.0, "hooks/0/factor": 0.5}
    params = runs.experiment.get_run(runs.run_id).data.params
    assert params.items() >= {"lr": "0.1", **{name: str(value) for name, value in ours.items()}}.items()
    config = dict(board.experiment.config)
    wandb.finish()
    assert config.items() >= {"lr": 0.1, **ours}.items()


def test_mlflow_keeps_the_first_settings_and_says_so(tmp_path: Path, wandb: Any, mlflow: Any) -> None:
    board, runs = WandbLogger(save_dir=tmp_path, offline=True), mlflow_logger(tmp_path)
    steer = ScaleController("model.0", 0.5, hook_id="a" * 200)
    runner = trainer(HookCallback(controllers=steer), logger=[board, runs])
    run("predict", runner, Saving(), data_of())
    run("predict", runner, Saving(), data_of())  # the same settings, to the same run
    steer.strength = 3.0
    with told("MLflow keeps the first value of a parameter, and this run has others: hooks/0/strength"):
        run("predict", runner, Saving(), data_of())
    params = runs.experiment.get_run(runs.run_id).data.params
    config = dict(board.experiment.config)
    wandb.finish()
    assert params["hooks/0/strength"] == "1.0" and config["hooks/0/strength"] == 3.0


def step_of(*layers: str) -> LoggedStep:
    return LoggedStep("train", 0, [DetectorReadings([Reading(layer, "rms", 1.0) for layer in layers], layers, "*")])


def test_more_numbers_than_mlflow_takes_at_once(tmp_path: Path, mlflow: Any) -> None:
    logger = mlflow_logger(tmp_path)
    write([logger], step_of(*(f"h.{i}" for i in range(1300))))
    assert len(logger.experiment.get_run(logger.run_id).data.metrics) == 1300


def test_layers_that_mlflow_would_take_for_one(tmp_path: Path, mlflow: Any) -> None:
    logger = mlflow_logger(tmp_path)
    write([logger], step_of("experts.a:b", "experts.a-b"))
    assert set(mlflow_metrics(logger)) == {"activations_rms/experts.a_b", "activations_rms/experts.a-b"}
    words = r"'activations_rms/a:b' and 'activations_rms/a\+b' both become 'activations_rms/a_b' in the characters"
    with pytest.raises(TagConflict, match=words):
        write([logger], step_of("a:b", "a+b"))


def test_other_ranks_log_nothing(tmp_path: Path, wandb: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    histogram = Histogram((0.0, 1.0), (2.0,), 0.5, 0.5, 2.0, 1.0, 0.5)
    detector = DetectorReadings([Reading("a:b", "histogram", histogram, "histogram")], ("a:b",), "*")
    loggers = [WandbLogger(save_dir=tmp_path, offline=True), mlflow_logger(tmp_path)]
    write(loggers, LoggedStep("train", 0, [detector]))
    assert not list(tmp_path.rglob("*.wandb")) and wandb.run is None


def test_wandb_gets_the_heatmap_as_an_image(wandb: Any, tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path)
    watch = HookCallback(ActivationStatistics("block:*", statistics=["rms"]), figures=True)
    run("fit", trainer(watch, logger=logger, log_every_n_steps=2), module_of("llama"), data_of("llama"))
    rows = [row for row in wandb_rows(wandb, tmp_path) if "figures/activations_rms" in row]
    (picture,) = rows
    assert picture[STEP] == 3 and picture["figures/activations_rms"]["_type"] == "images/separated"
    (file,) = picture["figures/activations_rms"]["filenames"]
    (saved,) = tmp_path.glob(f"wandb/offline-run-*/files/{file}")
    assert saved.read_bytes().startswith(b"\x89PNG")


@pytest.mark.documents("compatibility/w-b-mlflow-offline/logging")
def test_the_page_of_a_run_is_an_artifact(tmp_path: Path, wandb: Any, mlflow: Any) -> None:
    board, runs = TensorBoardLogger(tmp_path / "board"), mlflow_logger(tmp_path)
    loggers = [WandbLogger(save_dir=tmp_path, offline=True), runs, CSVLogger(tmp_path / "csv"), board]
    watch = HookCallback(ActivationStatistics("block:*", statistics=["mean"]), page=True)
    run("fit", trainer(watch, logger=loggers), module_of("llama"), data_of("llama"))
    page = (Path(board.log_dir) / "hooks.html").read_bytes()
    artifact = runs.experiment.download_artifacts(runs.run_id, "hooks.html", str(tmp_path))
    assert Path(artifact).read_bytes() == page
    (row,) = (row for row in wandb_rows(wandb, tmp_path) if "hooks" in row)
    assert row["hooks"]["_type"] == "html-file" and row["hooks"]["size"] == len(page)
    (logged,) = tmp_path.glob("wandb/offline-run-*/files/media/html/hooks_*.html")
    assert logged.read_bytes() == page


@pytest.mark.documents("reliability/the-page-of-page-true-cannot-be-written-or-a-logger-does-not-take-it")
def test_a_page_that_a_logger_does_not_take_is_a_warning(tmp_path: Path, mlflow: Any) -> None:
    board, runs = TensorBoardLogger(tmp_path / "board"), mlflow_logger(tmp_path)
    (Path(runs.experiment.get_run(runs.run_id).info.artifact_uri.removeprefix("file:")) / "hooks.html").mkdir()
    watch = HookCallback(ActivationStatistics("block:*", statistics=["mean"]), page=True)
    with told("could not log hooks.html with MLFlowLogger: ", RuntimeWarning):
        run("validate", trainer(watch, logger=[board, runs]), module_of("llama"), data_of("llama"))
    assert (Path(board.log_dir) / "hooks.html").is_file()
