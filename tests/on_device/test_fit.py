"""A fit on the device: with detectors it is the fit without them, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    Schedule,
)
from mi_crow_lightning.hooks import GradientStatistics, ProjectionDetector, TokenStatistics, WeightStatistics
from tests.callback.runs import Trace, assert_bit_equal, fingerprint, fit
from tests.models import WIDTH, Module, llama, token_data


class RandomStates(pl.Callback):
    """The random state of the device after each batch."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        if pl_module.device.type == "cuda":
            self.states.append(torch.cuda.get_rng_state(pl_module.device))


def trained(options: dict[str, Any], *callbacks: pl.Callback, **changes: Any) -> dict[str, Any]:
    """What is left of a fit of five steps. Eager attention: the backward pass of a fused one may differ by itself."""
    module, trace, random = Module(llama(attn_implementation="eager")), Trace(), RandomStates()
    pl.seed_everything(7, verbose=False)
    runner = fit(module, token_data(), *callbacks, trace, random, **options, **changes)
    losses = [loss.cpu() for loss in trace.losses]
    assert len(losses) == 5 and all(loss.isfinite() for loss in losses)
    return {**fingerprint(module, runner), "losses": losses, "states": trace.states, "of the device": random.states}


def detectors() -> list[Any]:
    every = Schedule()
    return [
        ActivationStatistics("block:*", schedule=every),
        ActivationStatistics("block:*.mlp", schedule=every, hook_type="pre_forward", name="inputs"),
        GradientStatistics("block:*", schedule=every),
        WeightStatistics("block:*", schedule=every),
        TokenStatistics("block:*", schedule=every),
        ProjectionDetector("block:*", vectors={"ones": torch.ones(WIDTH)}, schedule=every),
        LayerActivationDetector("block:1", name="held"),
    ]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_training_is_bit_identical(on_device: dict[str, Any], precision: str, tmp_path: Path) -> None:
    bare = trained(on_device, precision=precision)
    assert_bit_equal(bare, trained(on_device, precision=precision))  # or the device, not a detector, makes a difference
    watch = HookCallback(detectors(), alarms="default")
    logger = TensorBoardLogger(tmp_path)
    assert_bit_equal(bare, trained(on_device, watch, precision=precision, logger=logger))
    assert {row.step for row in watch.history()} == {0, 1, 2, 3, 4}
    held = watch.detectors[-1].get_captured()
    assert held is not None and held.device.type == "cpu"


def test_the_comparison_would_see_a_difference(on_device: dict[str, Any]) -> None:
    edit = FunctionController("block:2", lambda x: x * 1.001, schedule=Schedule())
    with pytest.raises(AssertionError):
        assert_bit_equal(trained(on_device), trained(on_device, HookCallback(controllers=edit)))


def test_nothing_refuses_to_be_deterministic(on_device: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch then raises at each operation that has no deterministic form on the device."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        watch = HookCallback(detectors())
        trained(on_device, watch, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert {row.step for row in watch.history()} == {0, 1, 2, 3, 4}


def test_its_state_loads_on_a_cpu(on_device: dict[str, Any]) -> None:
    watch, again = HookCallback(detectors()), HookCallback(detectors())
    trained(on_device, watch)
    file = io.BytesIO()
    torch.save(watch.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    trained({"accelerator": "cpu"}, again)
