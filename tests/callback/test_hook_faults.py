"""Hooks that do what they should not, in a Trainer: told, nothing lost, and no handle left."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from mi_crow_lightning import Controller, Detector, FunctionController, HookCallback, HookError, Schedule
from mi_crow_lightning.errors import WrittenInPlace
from mi_crow_lightning.hooks.schedules import Moment, When
from tests.callback.runs import (
    FailingController,
    OnEvent,
    Seen,
    assert_bit_equal,
    checkpointed,
    data_of,
    fingerprint,
    fit,
    interruptible,
    module_of,
    run,
    told,
)
from tests.models import Module, assert_same_handles, handles, trainer

pytestmark = pytest.mark.faults

EVERY = Schedule()
RUNS = ("fit", "predict")


def outcome(
    stage: str, *callbacks: pl.Callback, kind: str = "mlp", module: Module | None = None, **changes: Any
) -> Any:
    """What a run gives, its weights too; no handle may be left however it ends."""
    module = module or module_of(kind)
    before = handles(module)
    pl.seed_everything(7, verbose=False)
    try:
        found = run(stage, trainer(*callbacks, num_sanity_val_steps=0, **changes), module, data_of(kind))
        return found, fingerprint(module)
    finally:
        assert_same_handles(before, module)


class Broken(Detector):
    """Raises in one of its methods."""

    def __init__(self, where: str, error: BaseException, **options: Any) -> None:
        super().__init__(layer_signature="model.0", schedule=EVERY, **options)
        self.where, self.error_to_raise = where, error

    def _break(self, where: str) -> None:
        if where == self.where:
            raise self.error_to_raise

    def observe(self, x: Tensor, ctx: Any) -> None:
        self._break("observe")

    def prepare(self, layers: list[str], device: torch.device) -> None:
        self._break("prepare")

    def check_layers(self, blocks: Any) -> None:
        self._break("check_layers")

    def reading_names(self) -> tuple[str, ...]:
        self._break("reading_names")
        return ()

    def readings(self) -> Any:
        self._break("readings")
        return ()

    def reset(self) -> None:
        self._break("reset")

    def state_dict(self) -> dict[str, Any]:
        self._break("state_dict")
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._break("load_state_dict")
        super().load_state_dict(state)


@pytest.mark.documents("reliability/prepare-check-layers-or-reading-names-raises")
@pytest.mark.parametrize("stage", RUNS)
@pytest.mark.parametrize("where", ["prepare", "check_layers", "reading_names"])
def test_what_fails_before_the_first_batch_ends_the_run(where: str, stage: str) -> None:
    watch = HookCallback(detectors=[Seen("model.3"), Broken(where, ValueError("not today"))])
    with pytest.raises(ValueError, match="not today"):
        outcome(stage, watch)
    assert not any(hook.registered for hook in watch.detectors)


@pytest.mark.documents("reliability/a-hook-raises-keyboardinterrupt-or-systemexit")
@pytest.mark.parametrize("stage", RUNS)
@pytest.mark.parametrize("where", ["prepare", "observe", "readings", "reset"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_exit_is_never_held_back(error: BaseException, where: str, stage: str) -> None:
    watch = HookCallback(detectors=[Broken(where, error, on_error="warn"), Seen("model.3")])
    with interruptible(), pytest.raises(SystemExit) as caught:  # Lightning makes Ctrl-C an exit with 1
        outcome(stage, watch)
    assert caught.value.code == (3 if isinstance(error, SystemExit) else 1)
    assert not any(hook.registered for hook in watch.detectors)


@pytest.mark.documents("reliability/state-dict-raises-in-a-run")
def test_a_state_that_cannot_be_given_costs_no_checkpoint(tmp_path: Path) -> None:
    broken, other = Broken("state_dict", ValueError("no state"), hook_id="mine"), Seen("model.3", hook_id="other")
    watch, saved = HookCallback(detectors=[broken, other]), tmp_path / "a.ckpt"
    save = OnEvent("on_train_batch_end", lambda trainer, module, i: trainer.save_checkpoint(saved) if i == 2 else None)
    with told(r"Broken 'mine' .*stage train, batch 2: ValueError: no state[\s\S]*disabled", RuntimeWarning):
        outcome("fit", watch, save)
    state = torch.load(saved, weights_only=True)
    assert "model.0.weight" in state["state_dict"]
    (hooks,) = [kept["hooks"] for key, kept in state["callbacks"].items() if "HookCallback" in key]
    assert list(hooks) == ["other"] and len(other.batches("train")) == 5


@pytest.mark.documents("reliability/load-state-dict-raises")
def test_a_state_that_cannot_be_loaded_ends_the_run(tmp_path: Path) -> None:
    module = module_of()
    runner = fit(module, data_of(), HookCallback(detectors=Broken("nowhere", ValueError())))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    watch = HookCallback(detectors=Broken("load_state_dict", ValueError("not this state")))
    with pytest.raises(ValueError, match="not this state"):
        run("fit", trainer(watch, max_epochs=2), module, data_of(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert handles(module) == {} and not watch.detectors[0].registered


class BrokenSchedule(When):
    def due(self, moment: Moment) -> bool:
        if moment.batch_idx == 2:
            raise ZeroDivisionError("no such time")
        return True


@pytest.mark.documents("reliability/your-own-schedule-raises")
@pytest.mark.parametrize("stage", RUNS)
def test_a_schedule_that_fails(stage: str) -> None:
    seen = Seen(schedule=BrokenSchedule())
    with told("ZeroDivisionError: no such time", RuntimeWarning):
        _, bare = outcome(stage, HookCallback(detectors=seen))
    assert_bit_equal(outcome(stage)[1], bare)
    assert [batch for _, _, batch, _, _ in seen.calls] == [0, 1]
    edit = FunctionController("model.0", lambda x: x + 1, schedule=BrokenSchedule())
    with pytest.raises(HookError, match="batch 2: ZeroDivisionError: no such time"):
        outcome(stage, HookCallback(controllers=edit))


class Made(Controller):
    """Returns what a function makes of the activation."""

    def __init__(self, make: Callable[[Tensor], Any], **options: Any) -> None:
        super().__init__(layer_signature="model.0", schedule=EVERY, **options)
        self.make = make

    def edit(self, x: Tensor, ctx: Any) -> Any:
        return self.make(x)


@pytest.mark.documents("reliability/an-edit-returns-nan-or-infinity")
@pytest.mark.parametrize("stage", RUNS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_edit_that_is_not_finite_is_told(value: float, stage: str) -> None:
    edit = Made(lambda x: torch.cat([torch.full_like(x[:1], value), x[1:]]), hook_id="mine")
    watch = HookCallback(controllers=edit)
    name = "train" if stage == "fit" else stage
    count = 1 if stage == "fit" else 5  # in training after the first step already, the weights are lost from then on
    with told(f"mine turned {count} tokens into NaN or infinity at layer 'model.0' in stage '{name}'", RuntimeWarning):
        outcome(stage, watch, limit_val_batches=0)
    (first,) = watch.effects()
    assert first.tokens == 0 and count <= first.fired <= first.broken <= 5


@pytest.mark.documents("reliability/activations-hold-nan-or-infinity-before-the-edit")
def test_an_activation_that_was_not_finite_before_is_not_the_hooks_fault() -> None:
    broken = FunctionController("model.0", lambda x: x / 0, hook_id="first")
    steer = FunctionController("model.1", lambda x: x * 2, hook_id="second")
    with told("(into NaN|second.* or the activations were not finite)", Warning, times=2) as texts:
        outcome("predict", HookCallback(controllers=[broken, steer]))
    assert texts[0].startswith("first turned 20 tokens into NaN or infinity")


@pytest.mark.documents("reliability/an-edit-of-another-shape-dtype-or-device-or-no-tensor")
@pytest.mark.parametrize("stage", RUNS)
def test_a_tuple_is_no_edit(stage: str) -> None:
    with pytest.raises(HookError, match="must return a tensor or None, not a tuple"):
        outcome(stage, HookCallback(controllers=Made(lambda x: (x, None))))


def write_to(x: Tensor) -> None:
    x.add_(1)


class Writes(Detector):
    def observe(self, x: Tensor, ctx: Any) -> None:
        write_to(x)


@pytest.mark.documents("reliability/a-hook-writes-to-the-activation-in-place")
@pytest.mark.parametrize("stage", RUNS)
@pytest.mark.parametrize("hook", ["detector", "controller"])
def test_writing_in_place_ends_the_run_whatever_the_policy(hook: str, stage: str) -> None:
    if hook == "detector":
        watch = HookCallback(detectors=Writes("model.0", schedule=EVERY, on_error="disable"))
    else:
        watch = HookCallback(controllers=Made(write_to, on_error="warn"))
    with pytest.raises(HookError, match="wrote to the activation it was given") as caught:
        outcome(stage, watch)
    assert isinstance(caught.value.original_error, WrittenInPlace)


class Own(Detector):
    """Does what a function does."""

    def __init__(self, act: Callable[[Tensor, Any], Any], where: str = "model.0", **options: Any) -> None:
        super().__init__(layer_signature=where, schedule=EVERY, **options)
        self.act, self.calls = act, 0

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.calls += 1
        self.act(x, ctx)


@pytest.mark.documents("reliability/a-hook-sleeps")
@pytest.mark.parametrize("stage", RUNS)
def test_a_hook_that_sleeps_only_takes_its_time(stage: str) -> None:
    slow = Own(lambda x, ctx: time.sleep(0.01))
    assert_bit_equal(outcome(stage, HookCallback(detectors=slow)), outcome(stage))
    assert slow.calls >= 5


def model_again(x: Tensor, ctx: Any) -> None:
    ctx.layers.root.model.eval()
    ctx.layers.root.model(torch.ones(1, 8))
    ctx.layers.root.model.train(ctx.layers.root.training)


@pytest.mark.documents("reliability/a-hook-runs-the-model-or-its-layer-again")
@pytest.mark.parametrize("stage", RUNS)
def test_a_hook_may_run_the_model_again_and_no_hook_acts_in_that_run(stage: str) -> None:
    outer, edits = Own(model_again, "model.3"), []
    edit = FunctionController("model.0", lambda x: edits.append(len(x)) or x * 2, schedule=EVERY)
    alone = FunctionController("model.0", lambda x: x * 2, schedule=EVERY)
    found = outcome(stage, HookCallback(detectors=outer, controllers=edit))
    assert_bit_equal(found, outcome(stage, HookCallback(controllers=alone)))
    assert outer.calls == len(edits) >= 5 and 1 not in edits


@pytest.mark.documents("reliability/a-hook-runs-the-model-or-its-layer-again")
def test_a_controller_may_ask_the_bare_model() -> None:
    """Twice what the same layer would give for an input of zeros: the layer called within its own edit."""

    class Contrast(Controller):
        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            layer = ctx.layers.root.model[0]
            return x - layer(torch.zeros(1, 8))

    module = module_of().eval()
    (found, *_), _ = outcome("predict", HookCallback(controllers=Contrast("model.0")), module=module)
    x = torch.stack([row[0] for row in data_of()[:4]])
    expected = module.model[1:](x @ module.model[0].weight.T)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.documents("reliability/a-hook-runs-the-model-or-its-layer-again")
@pytest.mark.parametrize("callbacks", [1, 2])
def test_an_error_before_the_model_is_run_again_is_raised(callbacks: int) -> None:
    failing, again = FailingController("model.0"), Own(model_again, "model.3")
    watch = (
        [HookCallback(again, failing)] if callbacks == 1 else [HookCallback(controllers=failing), HookCallback(again)]
    )
    with pytest.raises(HookError, match="the controller broke"):
        outcome("predict", *watch)


@pytest.mark.documents("reliability/a-hook-draws-random-numbers")
def test_drawing_random_numbers_changes_a_run_unless_they_are_the_hooks_own() -> None:
    generator = torch.Generator().manual_seed(0)
    own = Own(lambda x, ctx: torch.randn(4, generator=generator))

    def forked(x: Tensor, ctx: Any) -> None:
        with torch.random.fork_rng():
            torch.randn(4)

    bare = outcome("fit")
    for hook in (own, Own(forked)):
        assert_bit_equal(outcome("fit", HookCallback(detectors=hook)), bare)
    shared = outcome("fit", HookCallback(detectors=Own(lambda x, ctx: torch.randn(4))))
    assert not torch.equal(shared[1]["torch"], bare[1]["torch"])


@pytest.mark.documents("reliability/a-hook-keeps-activations")
@pytest.mark.parametrize("stage", RUNS)
def test_activations_that_a_hook_keeps_are_its_own_affair(stage: str) -> None:
    """They hold no graph, and once it lets go of them nothing else holds them."""
    kept: list[Tensor] = []
    watch = HookCallback(detectors=Own(lambda x, ctx: kept.append(x)))
    assert_bit_equal(outcome(stage, watch), outcome(stage))
    assert len(kept) >= 5 and not any(x.requires_grad for x in kept)
    storages = [weakref.ref(x.untyped_storage()) for x in kept]
    activations = [weakref.ref(x) for x in kept]
    kept.clear()
    gc.collect()
    assert not any(ref() is not None for ref in (*storages, *activations))


@pytest.mark.documents("reliability/a-hook-unregisters-itself-or-others-in-a-pass")
@pytest.mark.parametrize("stage", RUNS)
def test_a_hook_may_unregister_itself_and_others_in_a_pass(stage: str) -> None:
    victim = Seen("model.3", schedule=EVERY, hook_id="victim")
    once = Own(lambda x, ctx: [ctx.layers.unregister_hook(hook) for hook in ("victim", "once")], hook_id="once")
    watch = HookCallback(detectors=[once, victim, other := Seen("model.4", schedule=EVERY)])
    assert_bit_equal(outcome(stage, watch), outcome(stage))
    assert (once.calls, len(victim.calls)) == (1, 0) and len(other.calls) >= 5


@pytest.mark.documents("reliability/a-hook-unregisters-itself-or-others-in-a-pass")
def test_an_error_is_told_though_all_hooks_are_unregistered_in_its_pass() -> None:
    failing = FailingController("model.0")
    everyone = Own(lambda x, ctx: ctx.layers.unregister_all_hooks(), "model.3")
    with pytest.raises(HookError, match="the controller broke"):
        outcome("predict", HookCallback(everyone, failing))


@pytest.mark.documents("reliability/a-hook-registers-another-in-a-pass")
@pytest.mark.parametrize("stage", RUNS)
def test_a_hook_may_register_another_in_a_pass(stage: str) -> None:
    late = Own(lambda x, ctx: None, "model.3", hook_id="late")
    late.schedule = None

    def register(x: Tensor, ctx: Any) -> None:
        if not late.registered:
            ctx.layers.register_hook(None, late)

    assert_bit_equal(outcome(stage, HookCallback(detectors=Own(register))), outcome(stage))
    assert late.calls >= 5 and not late.registered


@pytest.mark.documents("reliability/a-hook-is-switched-on-or-off-in-a-pass")
@pytest.mark.parametrize("policy", ["off", "on"])
def test_a_recompute_repeats_an_edit_whatever_is_switched_in_its_batch(policy: str) -> None:
    """The weights are those of a run without checkpointing, where nothing is computed twice."""

    class Switches(Controller):
        """Switches itself off at the third block, or, off at first, on at the second."""

        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            if policy == "off" and ctx.index == 2:
                self.disable()
            return x * 1.5

    def weights(module: Module) -> Any:
        edit = Switches("block:*.attn", schedule=EVERY)
        first = {"off": range(5), "on": [0]}[policy]  # once it runs at all its layers
        start = OnEvent("on_train_batch_start", lambda t, m, i: edit.enable() if i in first else edit.disable())
        enable = Own(lambda x, ctx: edit.enable() if policy == "on" else None, "block:1")
        watch = HookCallback(detectors=enable, controllers=edit)
        return outcome("fit", start, watch, kind="llama", module=module)[1]["weights"]

    plain, again = weights(module_of("llama")), weights(checkpointed(module_of("llama")))
    assert_bit_equal(plain, again)
    assert any(not torch.equal(plain[name], bare) for name, bare in outcome("fit", kind="llama")[1]["weights"].items())
