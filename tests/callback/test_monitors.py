"""Readings are metrics that other callbacks can monitor, and a model that is asleep is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import ActivationStatistics, HookCallback
from tests.callback.runs import OnEvent, data_of, fit, module_of, run, told
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


def fit_deep(*callbacks: pl.Callback) -> pl.Trainer:
    batches = DataLoader(torch.randn(4, 4), batch_size=2)  # type: ignore[arg-type]
    runner = trainer(*callbacks, enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks))
    runner.fit(Deep(), batches, batches)
    return runner


@pytest.mark.documents("reliability/a-misspelt-monitor")
@pytest.mark.parametrize("kind", ["stop", "keep", "schedule"])
def test_the_error_of_a_misspelt_monitor_is_short(kind: str, tmp_path: Path) -> None:
    def scheduled(module: Deep) -> dict[str, Any]:
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    wide = HookCallback(ActivationStatistics("block:*"))
    others: dict[str, list[pl.Callback]] = {
        "stop": [EarlyStopping("val_loss")],
        "keep": [ModelCheckpoint(tmp_path, monitor="val_loss")],
        "schedule": [],
    }
    with pytest.MonkeyPatch.context() as patch:
        if kind == "schedule":
            patch.setattr(Deep, "configure_optimizers", scheduled)
        with pytest.raises(Exception, match="val_loss") as caught:
            fit_deep(wide, *others[kind])
    message = str(caught.value)
    assert len(message) < 1500 and "train_loss" in message and "activations_" in message
    assert "valid_loss" in message or kind == "schedule"
    assert "readings of HookCallback are there: history() has their tags" in message
    assert len({row.tag for row in wide.history()}) > 350


@pytest.mark.documents("reliability/a-misspelt-monitor")
def test_short_errors_and_those_of_others_stay_as_they_are() -> None:
    narrow = HookCallback(ActivationStatistics("layers.3", statistics=["rms"], histogram=False))
    with pytest.raises(RuntimeError, match="val_loss") as caught:
        fit_deep(narrow, EarlyStopping("val_loss"))
    assert "activations_rms/val/layers.3" in str(caught.value) and "HookCallback" not in str(caught.value)
    long = "no 'such_loss', " * 1000
    with pytest.raises(ArithmeticError) as other:
        fit_deep(HookCallback(ActivationStatistics("block:*")), OnEvent("on_validation_end", raises(long)))
    assert str(other.value) == long


def raises(message: str) -> Any:
    def function(*event: Any) -> None:
        raise ArithmeticError(message)

    return function


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training:UserWarning")  # Lightning says less
def test_a_model_in_evaluation_mode_is_told() -> None:
    module = module_of()
    module.model.eval()
    with told("1 of 1 hooked layers are in evaluation mode.*call .train\\(\\)"):
        fit(module, data_of(), watch())
    with told("evaluation mode", times=0):
        fit(module_of(), data_of(), watch())
