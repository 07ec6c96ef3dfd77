"""Detectors change no bit of a run: weights, losses, optimizer, random numbers, keys, predictions."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    Schedule,
    SteeringController,
)
from tests.callback.runs import Trace, assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, run
from tests.metrics.noted import Noted
from tests.models import KINDS, WIDTH, trainer


def detectors(kind: str, checkpointing: bool = False) -> list[Any]:
    # transformers checkpoints a block's forward, so what runs again is what lies in the block (but for its end).
    signature, every = "block:*.attn" if checkpointing else KINDS[kind][2], Schedule()
    return [
        ActivationStatistics(signature, schedule=every),
        ActivationStatistics(signature, schedule=every, hook_type="pre_forward", name="inputs"),
        LayerActivationDetector(signature, name="held"),
    ]


def trained(kind: str, *callbacks: pl.Callback, checkpointing: bool = False, **changes: Any) -> dict[str, Any]:
    """What is left of a fit of five steps from a fixed start, with its losses."""
    module, trace = module_of(kind), Trace()
    if checkpointing:
        checkpointed(module)
    pl.seed_everything(7, verbose=False)
    runner = fit(module, data_of(kind), *callbacks, trace, **changes)
    return {**fingerprint(module, runner), "losses": trace.losses, "states": trace.states}


def assert_unchanged(kind: str, **changes: Any) -> HookCallback:
    watch = HookCallback(detectors=detectors(kind, checkpointing="checkpointing" in changes))
    bare = trained(kind, **changes)
    assert_bit_equal(bare, trained(kind, watch, **changes))
    assert len(bare["losses"]) == 5
    assert watch.history()
    assert watch.detectors[2].get_captured() is not None
    return watch


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bit_identical(kind: str) -> None:
    watch = assert_unchanged(kind)
    assert {row.step for row in watch.history()} == {0, 1, 2, 3, 4}


def test_the_comparison_would_see_a_difference() -> None:
    edit = FunctionController("block:2", lambda x: x * 1.0001, schedule=Schedule())
    with pytest.raises(AssertionError):
        assert_bit_equal(trained("llama"), trained("llama", HookCallback(controllers=edit)))


VALIDATION = {"limit_val_batches": 2, "val_check_interval": 2, "num_sanity_val_steps": 1}
EVERYTHING = {"checkpointing": True, "precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("llama", {"accumulate_grad_batches": 2}, id="accumulation"),
        pytest.param("cnn", {"accumulate_grad_batches": 2}, id="accumulation-cnn"),
        pytest.param("llama", {"gradient_clip_val": 0.1}, id="clipping"),
        pytest.param("llama", {"precision": "bf16-mixed"}, id="bf16-mixed"),
        pytest.param("cnn", {"precision": "bf16-mixed"}, id="bf16-mixed-cnn"),
        pytest.param("llama", {"checkpointing": True}, id="checkpointing"),
        pytest.param("llama", EVERYTHING, id="everything"),
        pytest.param("llama", VALIDATION, id="validation"),
        pytest.param("cnn", VALIDATION, id="validation-cnn"),
    ],
)
def test_training_is_bit_identical_with(kind: str, changes: dict[str, Any]) -> None:
    assert_unchanged(kind, **changes)


def test_a_recompute_is_not_counted() -> None:
    def readings(checkpointing: bool) -> list[Any]:
        detector = Noted("block:*.attn")  # with counts: the numbers alone are the same when all is seen twice
        trained("llama", HookCallback(detector), checkpointing=checkpointing)
        return detector.noted

    assert readings(True) == readings(False)
    assert len(readings(True)) == 5


def test_a_controller_acts_again_in_a_recompute() -> None:
    def weights(checkpointing: bool) -> dict[str, Any]:
        steer = SteeringController("block:*.attn", torch.ones(WIDTH), schedule=Schedule())
        return trained("llama", HookCallback(controllers=steer), checkpointing=checkpointing)

    assert_bit_equal(weights(True), weights(False))


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_bit_identical(kind: str) -> None:
    watch = HookCallback(detectors=detectors(kind))
    bare = run("predict", trainer(), module_of(kind), data_of(kind))
    seen = run("predict", trainer(watch), module_of(kind), data_of(kind))
    assert_bit_equal([_plain(batch) for batch in bare], [_plain(batch) for batch in seen])
    assert {row.stage for row in watch.history()} == {"predict"}


def _plain(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, dict) else batch


@pytest.mark.documents("compatibility/fit-validate-test-predict-in-any-order/controllers")
def test_a_controller_of_predict_leaves_fit_untouched() -> None:
    steer = SteeringController("block:1", torch.ones(WIDTH), strength=3.0)
    assert_bit_equal(trained("llama"), trained("llama", HookCallback(controllers=steer)))
