"""GradientStatistics in a Trainer: unscaled gradients, of each micro-batch, in a run that stays the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from mi_crow_lightning import FunctionController, GradientStatistics, HookCallback, Schedule
from mi_crow_lightning.hooks import Reading
from tests.callback.runs import Trace, assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, told
from tests.hooks.detectors.gradients import assert_equal_to, batch_of, by_hand, loss_of, steady
from tests.models import Module, loader, token_data, trainer

NAMES = [f"model.layers.{i}{part}" for i in range(4) for part in ("", ".mlp")]
SCALE = 1024.0


class Noted(GradientStatistics):
    """Keeps its readings, with their histograms."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.noted: list[list[Reading]] = []

    def readings(self) -> list[Reading]:
        self.noted.append(super().readings())
        return self.noted[-1]


def first_step(batches: int = 1, module: Any = None, **changes: Any) -> list[Reading]:
    """What is read of the first step, whose micro-batches have four rows each."""
    noted = Noted([f"model.{name}" for name in NAMES], per_channel=True)
    accumulate = {"accumulate_grad_batches": batches} if batches > 1 else {}
    fit(module or Module(steady()), token_data(4 * batches), HookCallback(noted), max_steps=1, **accumulate, **changes)
    (readings,) = noted.noted
    return [Reading(r.layer.removeprefix("model."), r.name, r.value, r.kind) for r in readings]


def expected_of(batches: int = 1, times: float = 1.0, autocast: Any = None) -> dict[str, np.ndarray]:
    """The gradients at the real tokens of each micro-batch, by hand."""
    model, each = steady(), []
    for i in range(batches):
        batch = batch_of(4 * i)

        def loss(batch: dict[str, Tensor] = batch) -> Tensor:
            with autocast or nullcontext():
                return loss_of(model, batch) / batches * times

        each.append(by_hand(model, NAMES, loss, batch["attention_mask"]))
    return {name: np.concatenate([one[name] for one in each]) / times for name in NAMES}


def test_the_micro_batches_of_a_step_are_read_together() -> None:
    assert_equal_to(expected_of(4), first_step(4))


def test_checkpointing_and_accumulation() -> None:
    assert_equal_to(expected_of(2), first_step(2, checkpointed(Module(steady()))))


def float16() -> Any:
    # Lightning makes "16-mixed" bfloat16 on a CPU, unless it is given the plugin itself.
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE))


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_a_scaled_loss_is_unscaled(reentrant: bool | None) -> None:
    module = Module(steady())
    if reentrant is not None:
        enable = getattr(module.model, "activation_checkpointing_enable", module.model.gradient_checkpointing_enable)
        enable({"use_reentrant": reentrant})
    expected = expected_of(2, SCALE, torch.autocast("cpu", torch.float16, cache_enabled=False))
    found = first_step(2, module, plugins=[float16()])
    assert max(np.abs(tokens).max() for tokens in expected.values()) < 1
    assert_equal_to(expected, found)


def test_bfloat16_needs_no_scale() -> None:
    expected = expected_of(1, 1.0, torch.autocast("cpu", torch.bfloat16, cache_enabled=False))
    assert_equal_to(expected, first_step(1, precision="bf16-mixed"))


class ByHand(Module):
    """Runs backward itself: once through Lightning, which scales the loss, once without, which does not."""

    def __init__(self, through_lightning: bool) -> None:
        super().__init__(steady())
        self.automatic_optimization, self.through_lightning = False, through_lightning

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.manual_backward(loss) if self.through_lightning else loss.backward()
        optimizer: Any = self.optimizers()
        optimizer.step()


@pytest.mark.parametrize("through_lightning", [True, False])
def test_a_step_that_runs_backward_itself(through_lightning: bool) -> None:
    scale = SCALE if through_lightning else 1.0
    if not through_lightning:
        expected = expected_of()
        assert_equal_to(expected, first_step(1, ByHand(False)))
    else:
        expected = expected_of(1, scale, torch.autocast("cpu", torch.float16, cache_enabled=False))
        assert_equal_to(expected, first_step(1, ByHand(True), plugins=[float16()]))


def trained(kind: str, *callbacks: Any, checkpointing: bool = False, **changes: Any) -> dict[str, Any]:
    module, trace = module_of(kind), Trace()
    if checkpointing:
        checkpointed(module)
    torch.manual_seed(7)
    runner = fit(module, data_of(kind), *callbacks, trace, **changes)
    return {**fingerprint(module, runner), "losses": trace.losses, "states": trace.states}


@pytest.mark.parametrize(
    ("kind", "signature", "changes"),
    [
        ("llama", "block:*", {}),
        ("llama", "block:*.attn", {"checkpointing": True, "precision": "bf16-mixed", "accumulate_grad_batches": 2}),
        ("cnn", "model.*", {"gradient_clip_val": 0.1}),
    ],
)
def test_training_is_bit_identical(kind: str, signature: str, changes: dict[str, Any]) -> None:
    watch = HookCallback(GradientStatistics(signature, schedule=Schedule(stages="train")))
    assert_bit_equal(trained(kind, **changes), trained(kind, watch, **changes))
    assert {row.tag.split("/")[0] for row in watch.history()} > {"gradients_rms", "gradients_nonfinite_count"}


def test_overflowing_gradients_are_counted_as_not_finite() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    found = {r.layer: r.value for r in first_step(plugins=[plugin]) if r.name == "nonfinite_count"}
    assert all(count > 0 for count in found.values())


def test_it_is_off_in_evaluations_and_says_why_it_cannot_be_on() -> None:
    module = module_of("mlp")
    watch = HookCallback(GradientStatistics("model.*"))
    with told("", times=0):
        trainer(watch).validate(module, loader(data_of("mlp")), verbose=False)
    assert not watch.history()
    watch = HookCallback(GradientStatistics("model.*", schedule=Schedule(stages="validate")))
    with told("no gradient is recorded in validate", RuntimeWarning):
        trainer(watch).validate(module, loader(data_of("mlp")), verbose=False)


def test_it_sees_the_gradient_before_or_after_an_edit() -> None:
    double = FunctionController("model.0", lambda x: x * 2, schedule=Schedule(stages="train"))
    before = GradientStatistics("model.0", statistics=["rms"], before_edits=True, name="before")
    after = GradientStatistics("model.0", statistics=["rms"], name="after")
    watch = HookCallback([before, after], double)
    fit(module_of("mlp"), data_of("mlp"), watch, max_steps=1)
    values = {row.tag.split("_")[0]: row.value for row in watch.history() if "rms/" in row.tag and "model.0" in row.tag}
    assert values["before"] == pytest.approx(2 * values["after"], rel=1e-6)


def test_nothing_in_a_compiled_graph() -> None:
    module = module_of("mlp")
    module.model.compile(backend="eager")
    with pytest.raises(Exception, match="the gradients of activations stay inside the compiled backward pass"):
        fit(module, data_of("mlp"), HookCallback(GradientStatistics("model.0")))
