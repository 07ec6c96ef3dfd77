"""Readings are metrics that other callbacks can monitor, and a model that is asleep is told."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import ActivationStatistics, HookCallback
from tests.callback.runs import data_of, fit, module_of, run, told
from tests.models import trainer

TRAIN_TAG, VAL_TAG = "activations_rms/model.0", "activations_rms/val/model.0"


def watch() -> HookCallback:
    return HookCallback(detectors=ActivationStatistics("model.0", statistics=["rms"]))


def test_callback_metrics_hold_the_last_readings() -> None:
    watching = watch()
    runner = trainer(watching, num_sanity_val_steps=0)
    run("fit", runner, module_of(), data_of())
    last = {row.tag: row.value for row in watching.history()}
    assert last.keys() == {TRAIN_TAG, VAL_TAG}
    for tag, value in last.items():
        assert runner.callback_metrics[tag].item() == pytest.approx(value, rel=1e-6)
    assert "loss" in runner.callback_metrics  # Lightning's own are still there


@pytest.mark.documents("compatibility/early-stopping-or-checkpoints-that-monitor-a-reading/detectors")
@pytest.mark.parametrize("order", [0, 1])
def test_early_stopping_monitors_a_reading(order: int) -> None:
    stop = EarlyStopping(VAL_TAG, stopping_threshold=0.0, mode="max", patience=10)  # any rms is above: stops at once
    runner = trainer(*[watch(), stop][:: 1 if order == 0 else -1], max_epochs=5, num_sanity_val_steps=0)
    run("fit", runner, module_of(), data_of())
    assert runner.current_epoch == 1
    assert "Stopping threshold reached" in (stop.stopping_reason_message or "")


@pytest.mark.documents("compatibility/early-stopping-or-checkpoints-that-monitor-a-reading/logging")
def test_checkpoints_are_chosen_by_a_reading(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor=VAL_TAG, mode="min", save_top_k=1)
    watching = watch()
    runner = trainer(watching, keep, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0)
    run("fit", runner, module_of(), data_of())
    seen = [row.value for row in watching.history() if row.tag == VAL_TAG]
    assert len(seen) == 3
    assert keep.best_model_score is not None
    assert keep.best_model_score.item() == pytest.approx(min(seen), rel=1e-6)


class Deep(pl.LightningModule):
    """Thirty layers, and a loss that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layers(x).pow(2).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        self.log("valid_loss", self.layers(x).pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit_deep(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    batches = DataLoader(torch.randn(4, 4), batch_size=2)  # type: ignore[arg-type]
    keeps = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    runner = trainer(*callbacks, enable_checkpointing=keeps, **options)
    runner.fit(Deep(), batches, batches)
    return runner


FEW = ("mean", "std", "rms", "abs_max", "token_norm_mean", "dead_share", "nonfinite_count")
OURS = {
    f"activations_{name}/{segment}block:*/{word}"
    for name in FEW
    for segment in ("", "val/")
    for word in ("min", "median", "max")
}


def found_by(runner: pl.Trainer) -> set[str]:
    return {tag for tag in runner.callback_metrics if tag.startswith("activations")}


@pytest.mark.documents("reliability/a-misspelt-monitor")
@pytest.mark.parametrize("kind", ["stop", "keep", "schedule"])
@pytest.mark.parametrize("monitor", ["val_loss", "activations_rms/val/layers.30"])
def test_the_error_of_a_misspelt_monitor_is_short(kind: str, monitor: str, tmp_path: Path) -> None:
    wide = HookCallback(ActivationStatistics("block:*"))
    others: dict[str, list[pl.Callback]] = {
        "stop": [EarlyStopping(monitor)],
        "keep": [ModelCheckpoint(tmp_path, monitor=monitor)],
        "schedule": [],
    }
    with pytest.MonkeyPatch.context() as patch:
        if kind == "schedule":
            patch.setattr(Deep, "configure_optimizers", scheduled_by(monitor))
        with pytest.raises(Exception, match=re.escape(monitor)) as caught:
            fit_deep(wide, *others[kind])
    message = str(caught.value)
    assert len(message) < 2000 and "train_loss" in message and "activations_rms/block:*/max" in message
    assert "valid_loss" in message or kind == "schedule"
    assert len({row.tag for row in wide.history()}) > 350


def scheduled_by(monitor: str) -> Any:
    def configured(module: Deep) -> dict[str, Any]:
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": monitor}}

    return configured


def test_without_being_asked_there_are_the_summaries_that_a_logger_would_show(tmp_path: Path) -> None:
    watching, logger = HookCallback(ActivationStatistics("block:*"), scalars="summary"), CSVLogger(tmp_path)
    runner = fit_deep(watching, logger=logger, log_every_n_steps=2)
    assert found_by(runner) == OURS
    logger.save()
    lines = list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))
    for tag in OURS:
        (*_, last) = (float(line[tag]) for line in lines if line[tag])
        assert runner.callback_metrics[tag].item() == pytest.approx(last)


class Monitors(pl.Callback):
    """A callback of someone else's, which calls something ``monitor``."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor


@pytest.mark.documents("compatibility/early-stopping-or-checkpoints-that-monitor-a-reading/detectors")
@pytest.mark.parametrize(
    ("tags", "make"),
    [
        (["activations_kurtosis/val/layers.7"], lambda tag: EarlyStopping(tag, patience=9)),
        (["activations_min/layers.3"], lambda tag: ModelCheckpoint("there", monitor=tag)),
        (["activations_zero_share/val/block:*/max"], lambda tag: ModelCheckpoint("there", monitor=tag)),
        (["activations_rms/layers.29"], lambda tag: ModelCheckpoint("there", "{epoch}-{" + tag + ":.2f}-{valid_loss}")),
        (["activations_min/layers.1", "activations_max/val/layers.2"], lambda *tags: Monitors(list(tags))),
        (["activations_std/layers.5"], Monitors),
        (["activations_std/val/layers.6"], None),
        ([], lambda: Monitors(7)),
    ],
)
def test_what_a_callback_or_a_scheduler_monitors_is_there(
    tags: list[str], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if make is None:
        monkeypatch.setattr(Deep, "configure_optimizers", scheduled_by(*tags))
    watching = HookCallback(ActivationStatistics("block:*"))
    runner = fit_deep(watching, *[make(*tags)] if make is not None else [])
    assert found_by(runner) == {*OURS, *tags}
    last = {row.tag: row.value for row in watching.history()}
    for tag in set(tags) & set(last):
        assert runner.callback_metrics[tag].item() == pytest.approx(last[tag], rel=1e-6)
    if "activations_rms/layers.29" in tags:  # it is in the name of a file, where its slash makes a folder
        (file,) = (str(path) for path in (tmp_path / "there").rglob("*.ckpt"))
        assert f"layers.29={last[tags[0]]:.2f}" in file


@pytest.mark.parametrize(
    ("patterns", "more"),
    [
        (["activations_rms/layers.1?"], {f"activations_rms/layers.{i}" for i in range(10, 20)}),
        (
            ["activations_max/val/layers.[01]", "activations_rms/*/max"],
            {f"activations_max/val/layers.{i}" for i in (0, 1)},
        ),
        (["activations_kurtosis/block:*/max"], {"activations_kurtosis/block:*/max"}),  # a tag, and a pattern
    ],
)
def test_more_is_there_where_it_is_asked_for(patterns: list[str], more: set[str]) -> None:
    watching = HookCallback(ActivationStatistics("block:*"), monitor=patterns)
    assert found_by(fit_deep(watching)) == OURS | more


@pytest.mark.documents("reliability/a-tag-in-hookcallback-monitor-that-no-reading-has")
def test_a_pattern_that_matches_nothing_is_told_once() -> None:
    watching = HookCallback(
        ActivationStatistics("block:*"),
        monitor=["activations_rms/layers.1", "activations_rms/layer.2", "*/val/layers.1"],
    )
    with told(
        r"monitor=\['activations_rms/layer.2'\]\) matches none of the [0-9]+ tags.*Did you mean 'activations_rms/l"
    ):
        fit_deep(watching)
    fit_deep(watching)


def test_everything_is_there_where_it_is_asked_for() -> None:
    watching = HookCallback(ActivationStatistics("block:*"), monitor=["*"])
    found = found_by(fit_deep(watching))
    assert {row.tag for row in watching.history()} < found
    assert {tag for tag in found if "block:*" in tag} > OURS
    assert not any(tag.startswith("activations/") for tag in found)  # histograms


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training:UserWarning")  # Lightning says less
def test_a_model_in_evaluation_mode_is_told() -> None:
    module = module_of()
    module.model.eval()
    with told("1 of 1 hooked layers are in evaluation mode.*call .train\\(\\)"):
        fit(module, data_of(), watch())
    with told("evaluation mode", times=0):
        fit(module_of(), data_of(), watch())
