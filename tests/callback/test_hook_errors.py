"""A failing hook: raised once the pass is over, or disabled, or told; never half a pass, never swallowed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from mi_crow_lightning import Detector, FunctionController, HookCallback, HookError, Schedule
from tests.callback.runs import (
    STAGES,
    FailingController,
    FailingDetector,
    OnEvent,
    Seen,
    assert_bit_equal,
    checkpointed,
    data_of,
    fingerprint,
    fit,
    module_of,
    run,
    told,
)
from tests.models import assert_same_handles, handles, trainer

EVERY = Schedule()


def trained(*callbacks: pl.Callback) -> dict[str, Any]:
    module = module_of()
    pl.seed_everything(7, verbose=False)
    return fingerprint(module, fit(module, data_of(), *callbacks))


@pytest.mark.documents("reliability/a-detector-raises-in-a-pass")
def test_a_detector_is_disabled_and_the_run_is_unharmed() -> None:
    failing, other = FailingDetector(at=2, hook_id="mine"), Seen(schedule=EVERY)
    with told("disabled from now on", RuntimeWarning) as texts:
        weights = trained(HookCallback(detectors=[failing, other]))
    assert_bit_equal(trained(), weights)
    assert (failing.calls, failing.enabled, len(other.calls)) == (2, False, 5)
    (text,) = texts
    assert (
        "FailingDetector 'mine' (forward) failed at layer 'model.0'; stage train, batch 1; activation of shape (4, 32)"
        in text
    )
    assert "ValueError: the detector broke" in text
    assert "Traceback (most recent call last)" in text and "in observe" in text
    assert isinstance(failing.error, HookError) and failing.error.batch_idx == 1


@pytest.mark.parametrize("hook_id", [None, "mine"])
def test_an_id_that_nobody_gave_is_in_no_message(hook_id: str | None) -> None:
    failing = FailingDetector(at=2, hook_id=hook_id, schedule=EVERY)
    with told("disabled from now on", RuntimeWarning) as texts:
        trained(HookCallback(detectors=failing))
    shown = "" if hook_id is None else f" {hook_id!r}"
    assert texts[0].startswith(f"FailingDetector{shown} (forward) failed at layer 'model.0'")
    assert (failing.id in texts[0]) is (failing.id in repr(failing)) is (hook_id is not None)
    assert isinstance(failing.error, HookError) and failing.error.hook_id == failing.id


@pytest.mark.documents("reliability/on-error-warn")
def test_a_detector_that_only_warns_stays_on() -> None:
    failing = FailingDetector(at=2, on_error="warn", schedule=EVERY)
    with told("The run goes on without the hook's effect in this pass", RuntimeWarning):
        trained(HookCallback(detectors=failing))
    assert failing.enabled and failing.calls == 5


@pytest.mark.documents("reliability/on-error-raise-the-default-of-controllers")
@pytest.mark.parametrize("hook", [FailingController, FailingDetector])
def test_raising_leaves_the_weights_of_the_step_before(hook: Any) -> None:
    steps: list[Any] = []
    module = module_of("llama")
    note = OnEvent("on_train_batch_start", lambda trainer, module, index: steps.append(fingerprint(module)["weights"]))
    failing = hook("block:0", at=3, on_error="raise", schedule=EVERY)
    with pytest.raises(HookError, match=r"stage train, batch 2.*broke"):
        fit(module, data_of("llama"), note, HookCallback(**{_argument(failing): failing}))
    assert len(steps) == 3
    assert_bit_equal(steps[2], fingerprint(module)["weights"])


def _argument(hook: Any) -> str:
    return "controllers" if hook.edits else "detectors"


def test_a_controller_may_be_disabled_or_only_told_of() -> None:
    for policy, calls in (("disable", 2), ("warn", 5)):
        failing = FailingController(at=2, on_error=policy, schedule=EVERY)
        with told("the controller broke", RuntimeWarning):
            fit(module_of(), data_of(), HookCallback(controllers=failing))
        assert failing.calls == calls and failing.enabled == (policy == "warn")


@pytest.mark.documents("reliability/a-controller-raises-in-predict")
def test_generation_stops_after_one_pass() -> None:
    module, passes = module_of("llama"), []
    module.new_tokens = 20
    module.model.lm_head.register_forward_hook(lambda *call: passes.append(1))
    with pytest.raises(HookError, match="the controller broke"):
        run("predict", trainer(HookCallback(controllers=FailingController("block:1"))), module, data_of("llama"))
    assert len(passes) == 1


@pytest.mark.documents("reliability/a-controller-raises-in-predict")
def test_no_writer_sees_a_result_that_only_looks_steered() -> None:
    written: list[int] = []

    class Writer(BasePredictionWriter):
        def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, *rest: Any) -> None:
            written.append(rest[2])

    steer = HookCallback(controllers=FailingController("block:1", at=2))
    with pytest.raises(HookError, match="the controller broke"):
        run("predict", trainer(Writer("batch"), steer), module_of("vit"), data_of("vit"))
    assert written == [0]


@pytest.mark.documents("reliability/several-hooks-raise-in-one-pass")
@pytest.mark.parametrize("stage", STAGES)
def test_what_the_error_tells(stage: str) -> None:
    failing = FailingController("block:*", at=2, hook_id="mine", hook_type="pre_forward", schedule=EVERY)
    second = FailingDetector("block:3", hook_id="second", on_error="raise", schedule=EVERY)
    watch = HookCallback(detectors=second, controllers=failing)
    with pytest.raises(HookError) as caught:
        run(stage, trainer(watch, num_sanity_val_steps=0), module_of("bert"), data_of("bert"))
    error = caught.value
    assert (error.hook_id, error.hook_type, error.layer) == ("mine", "pre_forward", "model.bert.encoder.layer.1")
    assert (error.stage, error.batch_idx) == ({"fit": "train"}.get(stage, stage), 0)
    assert error.shape == (4, 7, 32)
    assert isinstance(error.original_error, ValueError) and error.__cause__ is error.original_error
    assert error.outputs.logits.shape == (4, 5)
    assert [other.hook_id for other in error.others] == ["second"]
    assert "1 more hook(s) failed in this pass: see .others" in str(error)
    assert failing.calls == 2  # a hook that failed stays out of the rest of the pass


def test_a_hook_on_the_outermost_module() -> None:
    """No ancestor is called, so the layer's own call is the whole pass."""
    with pytest.raises(HookError, match="at layer 'model'; stage predict, batch 0; activation of shape"):
        run("predict", trainer(HookCallback(controllers=FailingController("model"))), module_of("mlp"), data_of("mlp"))
    with told("the detector broke", RuntimeWarning):
        fit(module_of("llama"), data_of("llama"), HookCallback(detectors=FailingDetector("model")))


@pytest.mark.documents("compatibility/sanity-check/controllers")
def test_the_sanity_check_calls_no_hook() -> None:
    failing = FailingController(schedule=Schedule(stages="validate"))
    module, data = module_of(), data_of()
    with pytest.raises(HookError, match="stage validate, batch 0"):
        run("fit", trainer(HookCallback(controllers=failing), num_sanity_val_steps=2), module, data)
    assert failing.calls == 1
    assert not torch.equal(module.model[0].weight, module_of().model[0].weight), "training came before"


@pytest.mark.documents("reliability/the-model-raises-in-the-same-pass")
def test_when_the_pass_raises_too_the_users_error_surfaces_and_ours_is_told() -> None:
    module = module_of("llama")

    def crash(*args: Any) -> None:
        raise ArithmeticError("my own mistake")

    module.model.lm_head.register_forward_hook(crash)
    failing = FailingController("block:1", schedule=EVERY)
    with told("the controller broke") as texts, pytest.raises(ArithmeticError, match="my own mistake"):
        fit(module, data_of("llama"), HookCallback(controllers=failing))
    assert "silenced as another error was raised in forward" in texts[0]


class Keeping(Detector):
    """Fails while its frame, and that of an error before, hold a tensor as large as the activation."""

    held: weakref.ref[Tensor]

    def observe(self, x: Tensor, ctx: Any) -> None:
        activation = x.clone()
        self.held = weakref.ref(activation)
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("the detector broke") from error


@pytest.mark.documents("reliability/the-hooks-error-holds-activations-in-its-traceback")
@pytest.mark.parametrize("policy", ["disable", "warn"])
def test_an_error_that_was_told_keeps_no_activation_alive(policy: str) -> None:
    failing = Keeping(layer_signature="model.0", on_error=policy, schedule=Schedule(batches=0))
    with told("KeyError: 'first'", RuntimeWarning):
        fit(module_of(), data_of(), HookCallback(detectors=failing))
    gc.collect()
    assert failing.error is not None and failing.held() is None


@pytest.mark.documents("reliability/a-hook-raises-in-a-recompute-of-gradient-checkpointing")
def test_a_hook_that_fails_in_a_recompute_is_not_caught() -> None:
    module = checkpointed(module_of("llama"))
    before = handles(module)  # transformers' own
    failing = FailingController("block:1.attn", at=2, on_error="warn", schedule=EVERY)
    with pytest.raises(ValueError, match=r"^the controller broke$"):
        fit(module, data_of("llama"), HookCallback(controllers=failing))
    assert_same_handles(before, module)


def test_a_detector_is_not_called_in_a_recompute() -> None:
    module, calls = checkpointed(module_of("llama")), []
    module.model.model.layers[1].self_attn.register_forward_hook(lambda *call: calls.append(1))
    failing = FailingDetector("block:1.attn", at=6, schedule=EVERY)
    fit(module, data_of("llama"), HookCallback(detectors=failing))
    assert (failing.calls, len(calls)) == (5, 10)


def test_a_detector_with_a_hook_fn_of_its_own_is_not_called_in_a_recompute_either() -> None:
    class Own(Detector):
        calls = 0

        def _hook_fn(self, module: Any, input: Any, output: Any = None) -> None:
            self.calls += 1

    own = Own(layer_signature="block:1.attn", schedule=EVERY)
    fit(checkpointed(module_of("llama")), data_of("llama"), HookCallback(detectors=own))
    assert own.calls == 5


def test_a_hook_that_failed_works_again_once_enabled() -> None:
    failing = FailingDetector(at=1, schedule=EVERY)
    module, watch = module_of(), HookCallback(detectors=failing)
    with told("hook.enable\\(\\) switches it on again", RuntimeWarning):
        fit(module, data_of(), watch)
    failing.enable()
    fit(module, data_of(), watch)
    assert failing.calls == 6


def test_a_failing_edit_takes_no_effect_and_the_other_hooks_do() -> None:
    add = FunctionController("model.0", lambda x: x + 1)
    broken = FailingController("model.0", at=1, on_error="disable")
    with told("the controller broke", RuntimeWarning):
        both = run("predict", trainer(HookCallback(controllers=[broken, add])), module_of().eval(), data_of())
    alone = run("predict", trainer(HookCallback(controllers=add)), module_of().eval(), data_of())
    assert_bit_equal(both, alone)
