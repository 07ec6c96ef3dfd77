"""HookCallback(prog_bar=[...]): the largest number over the layers, in both of Lightning's progress bars."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from mi_crow_lightning import (
    ActivationStatistics,
    Detector,
    HookCallback,
    HookContext,
    ProjectionDetector,
    Reading,
    ScaleController,
    Schedule,
)
from mi_crow_lightning.callback.progress_bar import ProgressBarNumbers
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep
from tests.callback.runs import data_of, module_of, run
from tests.callback.test_per_dataloader import FIRST, SECOND, Two
from tests.models import WIDTH, trainer

EVERY = Schedule()


class Shown:
    """What a bar was given, after each batch and at the end of validation."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)  # type: ignore[misc]
        self.__dict__.setdefault("shown", []).append(dict(metrics))
        return metrics  # type: ignore[no-any-return]


class Tqdm(Shown, TQDMProgressBar):
    pass


class Rich(Shown, RichProgressBar):
    pass


def fit(callbacks: list[Any], **options: Any) -> pl.Trainer:
    runner = trainer(*callbacks, enable_progress_bar=True, max_steps=4, val_check_interval=2, **options)
    run("fit", runner, module_of(), data_of())
    return runner


def largest(callback: HookCallback, stage: str, name: str = "rms") -> list[float]:
    """The largest of each step, as the history has it."""
    by_step: dict[int, float] = {}
    for row in callback.history():
        if (row.stage, row.name) == (stage, name):
            by_step[row.step] = max(by_step.get(row.step, -math.inf), row.value)
    return list(by_step.values())


@pytest.mark.parametrize("kind", [Tqdm, Rich])
def test_the_largest_over_the_layers_is_shown(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    bar = kind(console_kwargs={"file": file, "force_terminal": True, "width": 200}) if kind is Rich else kind()
    watch = HookCallback(ActivationStatistics("model.*", statistics=["rms", "mean"]), prog_bar=["rms"])
    fit([bar, watch], log_every_n_steps=1)
    assert len(largest(watch, "train")) == 4 and largest(watch, "validate")
    train = [metrics["rms_max"] for metrics in bar.shown if "rms_max" in metrics]
    assert list(dict.fromkeys(train)) == largest(watch, "train")
    validation = [metrics["val_rms_max"] for metrics in bar.shown if "val_rms_max" in metrics]
    assert list(dict.fromkeys(validation)) == largest(watch, "validate")
    assert not any(key.endswith("mean_max") for metrics in bar.shown for key in metrics)
    text = file.getvalue() if kind is Rich else "".join(capsys.readouterr())
    assert f"rms_max{':' if kind is Rich else '='}" in text.replace(" ", "") and "val_rms_max" in text


def test_it_changes_nothing_else() -> None:
    losses = []
    for names in ([], ["rms"]):
        watch = HookCallback(ActivationStatistics("model.*"), prog_bar=names)
        runner = fit([watch], log_every_n_steps=2)
        metrics = {key: float(value) for key, value in runner.callback_metrics.items()}
        losses.append((metrics, [row.value for row in watch.history()]))
    assert losses[0] == losses[1]


def test_detectors_of_a_name_and_controllers_have_numbers_of_their_own() -> None:
    hooks = [ActivationStatistics("model.0"), ActivationStatistics("model.3", name="last")]
    steer = ScaleController("model.0", 2.0, schedule=EVERY)
    callback = HookCallback(hooks, [steer], prog_bar=["rms", "mean_ratio"])
    runner = fit([callback], log_every_n_steps=1)
    names = {"rms_max", "last_rms_max", "steering_mean_ratio_max"}
    assert names | {f"val_{name}" for name in names} <= runner.progress_bar_metrics.keys()


def test_each_dataloader_has_its_number() -> None:
    detector = ActivationStatistics("layer", statistics=["mean"])
    callback = HookCallback(detector, per_dataloader=True, prog_bar=["mean"])
    runner = trainer(callback)
    runner.validate(Two(), [DataLoader(rows, batch_size=2) for rows in (FIRST, SECOND)], verbose=False)
    assert {key: value for key, value in runner.progress_bar_metrics.items() if key.startswith("val_mean")} == {
        "val_mean_max/dataloader_idx_0": pytest.approx(FIRST.mean().item()),
        "val_mean_max/dataloader_idx_1": pytest.approx(SECOND.mean().item()),
    }


def test_nan_counts_only_where_there_is_nothing_else() -> None:
    def shown(*values: float) -> dict[str, float]:
        readings = [Reading(f"h.{i}", "kurtosis", value) for i, value in enumerate(values)]
        return ProgressBarNumbers(["kurtosis"], []).of(
            LoggedStep("train", 0, [DetectorReadings(readings, tuple(one.layer for one in readings), "h.*")])
        )

    assert shown(math.nan, -2.0, math.nan, -1.0) == {"kurtosis_max": -1.0}
    assert math.isnan(shown(math.nan, math.nan)["kurtosis_max"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prog_bar": "rms"}, TypeError, "prog_bar='rms' must be a list of names of readings.*not one string"),
        ({"prog_bar": [3]}, TypeError, r"prog_bar=\[3\] holds 3: give names of readings"),
        ({"prog_bar": ["rmz"]}, ValueError, "prog_bar='rmz' is not known: choose one of 'rms'"),
        ({"prog_bar": ["histogram"]}, ValueError, "prog_bar='histogram' is not known"),
        ({"prog_bar": ["tokens"]}, ValueError, "prog_bar='tokens' is not known"),
    ],
)
def test_wrong_names(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        HookCallback(ActivationStatistics("model.*", statistics=["rms"]), **options)


class Undeclared(Detector):
    """A detector that does not say what it reads."""

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        pass

    def readings(self) -> list[Reading]:
        return [Reading("model.0", "mine", 2.0)]


def test_a_name_that_no_detector_declares_is_refused_at_the_first_readings() -> None:
    runner = fit([HookCallback(Undeclared("model.0"), prog_bar=["mine"])], log_every_n_steps=1)
    assert runner.progress_bar_metrics["mine_max"] == 2.0
    with pytest.raises(ValueError, match="prog_bar='mime' is not known: choose one of 'mine'"):
        fit([HookCallback(Undeclared("model.0"), prog_bar=["mime"])], log_every_n_steps=1)


def test_copies_keep_it() -> None:
    callback = HookCallback(ActivationStatistics("model.*"), prog_bar=["rms"])
    again = pickle.loads(pickle.dumps(callback))
    assert again.prog_bar == ["rms"]
    assert "rms_max" in fit([again], log_every_n_steps=1).progress_bar_metrics


def test_projections_are_shown() -> None:

    detector = ProjectionDetector("model.0", vectors={"joy": torch.ones(WIDTH)})
    name = detector.reading_names()[0]
    runner = fit([HookCallback(detector, prog_bar=[name])], log_every_n_steps=1)
    assert any(key.endswith(f"{name}_max") for key in runner.progress_bar_metrics)
