"""Readings are metrics that other callbacks can monitor, and a model that is asleep is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

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


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training:UserWarning")  # Lightning says less
def test_a_model_in_evaluation_mode_is_told() -> None:
    module = module_of()
    module.model.eval()
    with told("1 of 1 hooked layers are in evaluation mode.*call .train\\(\\)"):
        fit(module, data_of(), watch())
    with told("evaluation mode", times=0):
        fit(module_of(), data_of(), watch())
