"""Readings to loggers other than TensorBoard, and the choice between the two."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, write, write_scalars
from mi_crow_lightning.metrics.histogram import Histogram

HISTOGRAM = Histogram((0.0, 1.0, 2.0), (1.0, 3.0), 0.5, 1.5, 4.0, 5.0, 7.0)
PICTURE = Reading("h.0", "histogram", HISTOGRAM, "histogram")
DRAWN = ("activations/h.0", PICTURE)


def scalar(tag: str, value: float) -> tuple[str, Reading]:
    return tag, Reading("h.0", "mean", value)


def logged(step: int, *readings: Reading, stage: str = "train") -> LoggedStep:
    return LoggedStep(stage, step, [DetectorReadings(readings, ("h.0",), "h.*")])


def mean(value: float, layer: str = "h.0") -> Reading:
    return Reading(layer, "mean", value)


class Recorder:
    """A logger that keeps its calls; like a user's own it has no ``experiment``."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((metrics, step))


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_call_with_the_numbers_and_without_the_histograms() -> None:
    logger = Recorder()
    write_scalars(logger, [scalar("a", 1), DRAWN, scalar("b", math.inf)], 5)
    assert logger.calls == [({"a": 1.0, "b": math.inf}, 5)]
    assert type(logger.calls[0][0]["a"]) is float


@pytest.mark.parametrize("readings", [[], [DRAWN]])
def test_a_logger_is_not_called_without_a_number(readings: list[tuple[str, Reading]]) -> None:
    logger = Recorder()
    write_scalars(logger, readings, 5)
    assert logger.calls == []


@pytest.mark.parametrize("flush_every", [1, 100])
def test_csv_keeps_training_and_validation_rows_with_different_keys(tmp_path: Path, flush_every: int) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=flush_every)
    write([logger], logged(0, mean(1.5), PICTURE))
    logger.log_metrics({"loss": 9.0}, step=0)
    write([logger], logged(0, mean(2.5), stage="validate"))
    logger.save()
    write([logger], logged(1, mean(math.nan)))
    write([logger], logged(1, mean(0.1, 'h,"0'), stage="test"))
    logger.finalize("success")
    section = "activations_mean"
    expected = [("0", f"{section}/h.0", 1.5), ("0", "loss", 9.0), ("0", f"{section}/val/h.0", 2.5)]
    expected += [("1", f"{section}/h.0", math.nan), ("1", f'{section}/test/h,"0', 0.1)]
    written = rows(logger)
    assert len(written) == len(expected)
    for row, (step, tag, value) in zip(written, expected, strict=True):
        assert row.pop("step") == step
        assert {key for key, cell in row.items() if cell} == {tag}
        assert float(row[tag]) == pytest.approx(value, abs=0, rel=0, nan_ok=True)


def test_each_logger_gets_what_it_can_show(tmp_path: Path) -> None:
    board, table, own = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv"), Recorder()
    write([board, table, own], logged(7, mean(0.25), PICTURE))
    board.finalize("success")
    table.finalize("success")
    events = EventAccumulator(board.log_dir).Reload()
    assert [(e.step, e.value) for e in events.Scalars("activations_mean/h.0")] == [(7, 0.25)]
    assert [e.step for e in events.Histograms("activations/h.0")] == [7]
    assert rows(table) == [{"activations_mean/h.0": "0.25", "step": "7"}]
    assert own.calls == [({"activations_mean/h.0": 0.25}, 7)]


def test_no_loggers_is_fine() -> None:
    write([], logged(0, mean(1.0)))


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    write([TensorBoardLogger(tmp_path), CSVLogger(tmp_path)], logged(0, mean(1.0), PICTURE))
    assert list(tmp_path.rglob("*")) == []


class Broken(Recorder):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> Any:
        raise ConnectionError("server gone")


def test_what_a_logger_raises_reaches_the_caller() -> None:
    with pytest.raises(ConnectionError, match="server gone"):
        write([Broken()], logged(0, mean(1.0)))


@pytest.mark.parametrize(("scalars", "expected"), [("all", 4), ("summary", 3), ("none", 0)])
def test_what_is_shown_is_the_same_in_every_logger(tmp_path: Path, scalars: str, expected: int) -> None:
    layers = tuple(f"h.{i}" for i in range(4))
    readings = [mean(float(i), layer) for i, layer in enumerate(layers)]
    board, own = TensorBoardLogger(tmp_path), Recorder()
    write([board, own], LoggedStep("train", 2, [DetectorReadings([*readings, PICTURE], layers, "h.*")]), scalars)
    board.finalize("success")
    events = EventAccumulator(board.log_dir).Reload()
    metrics = own.calls[0][0] if expected else {}
    assert len(own.calls) == (expected > 0) and len(metrics) == expected
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == metrics
    assert events.Tags()["histograms"] == (["activations/h.0"] if scalars == "all" else [])
    assert len(events.Tags()["tensors"]) == 2  # the compact ones, in any case
