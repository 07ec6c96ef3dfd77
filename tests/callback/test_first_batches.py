"""A controller whose layers do not run in the first batch it is due in: the run ends before that does any harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    FunctionController,
    Hook,
    HookCallback,
    NeverFired,
    PredictionWriter,
    Schedule,
    SteeringController,
)
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, module_of, run
from tests.models import Module, handles, trainer

EVERY = Schedule()


class Detour(nn.Module):
    """Runs its layer ``spare`` in the calls that a function chooses, by their number."""

    def __init__(self, runs: Callable[[int], bool]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.spare, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.runs, self.calls = runs, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.used(x)
        if self.runs(self.calls):
            x = self.spare(x)
        self.calls += 1
        out: Tensor = self.out(x)
        return out


def never(call: int) -> bool:
    return False


def odd(call: int) -> bool:
    return call % 2 == 1


def detour(runs: Callable[[int], bool] = never) -> Module:
    return Module(Detour(runs))


def edit(**options: Any) -> FunctionController:
    return FunctionController("spare", lambda x: x + 1, **{"schedule": EVERY, **options})


class Closure(Module):
    """Its optimizer calls the step several times."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class StepsFirst(Module):
    """Its training step calls the optimizer's `step` by hand, in a method of its own."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        optimizer.step()


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Module, {}),
        (Module, {"accumulate_grad_batches": 3}),
        (Module, {"precision": "bf16-mixed"}),
        (Module, {"gradient_clip_val": 0.5}),
        (Closure, {}),
        (StepsFirst, {}),
    ],
)
def test_in_a_fit_the_optimizer_has_not_stepped(kind: type[Module], options: dict[str, Any]) -> None:
    module = kind(Detour(never))
    before = fingerprint(module)["weights"]
    with pytest.raises(NeverFired, match="in stage 'train' for the first time in batch 0, and none of its 1 layers"):
        fit(module, data_of(), HookCallback(controllers=edit()), **options)
    assert_bit_equal(before, fingerprint(module)["weights"])
    assert module.model.calls == 1 and all(p.grad is None for p in module.parameters()), "nor has backward run"
    assert handles(module) == {}


class Manual(Module):
    """Steps by hand; the layer that is watched runs after the first of two backward passes."""

    def __init__(self, late: bool) -> None:
        super().__init__(Detour(never))
        self.automatic_optimization, self.late = False, late

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        if self.late:
            self.manual_backward(self.model.spare(batch[0]).sum())


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
def test_a_step_by_hand_is_asked_when_it_returns() -> None:
    module = Manual(late=False)
    with pytest.raises(NeverFired, match="for the first time in batch 0"):
        fit(module, data_of(), HookCallback(controllers=edit()))
    assert module.model.calls == 1
    fit(Manual(late=True), data_of(), HookCallback(controllers=edit()))


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
@pytest.mark.parametrize(("first", "batches"), [("writer", 1), ("hooks", 0)])
def test_in_predict_at_most_one_batch_was_written(tmp_path: Path, first: str, batches: int) -> None:
    class Words(Module):
        def predict_step(self, batch: Any, batch_idx: int) -> list[str]:
            return [str(row.argmax().item()) for row in self.model(batch[0])]

    callbacks = [HookCallback(controllers=edit()), PredictionWriter(tmp_path / "a.jsonl")]
    with pytest.raises(NeverFired, match="in stage 'predict' for the first time in batch 0"):
        run("predict", trainer(*callbacks[:: -1 if first == "writer" else 1]), Words(Detour(never)), data_of())
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4 * batches


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_evaluation_ends_in_its_first_batch(stage: str) -> None:
    module = detour()
    with pytest.raises(NeverFired, match=f"in stage '{stage}' for the first time in batch 0"):
        run(stage, trainer(HookCallback(controllers=edit())), module, data_of())
    assert module.model.calls == 1


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
def test_each_stage_of_a_fit_is_asked_alone_and_the_sanity_check_never() -> None:
    module = detour(lambda call: call >= 2 and module.training)
    watch = HookCallback(controllers=edit())
    with pytest.raises(NeverFired, match="in stage 'validate' for the first time in batch 0"):
        run("fit", trainer(watch, num_sanity_val_steps=2), module, data_of())
    assert module.model.calls == 2 + 5 + 1


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
@pytest.mark.parametrize(
    ("schedule", "batch", "calls"),
    [
        (Schedule(batches=2), 2, 3),
        (Schedule(every_n_batches=4), 3, 4),
        (Schedule(epochs=1), 0, 6),
        (Schedule(start_step=3) & ~Schedule(batches=3), 4, 5),
    ],
)
def test_the_first_batch_is_that_of_its_schedule(schedule: Any, batch: int, calls: int) -> None:
    module = detour()
    with pytest.raises(NeverFired, match=f"in stage 'train' for the first time in batch {batch},"):
        fit(module, data_of(), HookCallback(controllers=edit(schedule=schedule)), max_epochs=2)
    assert module.model.calls == calls


@pytest.mark.documents("reliability/a-controllers-layers-run-in-some-batches-only")
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_layers_that_run_in_some_batches_are_asked_for_unless_they_may_be_skipped(stage: str) -> None:
    schedule = Schedule(stages=["train", "predict"])
    with pytest.raises(NeverFired, match=r"layerdrop, experts\), give the hook may_skip=True\.$"):
        run(stage, trainer(HookCallback(controllers=edit(schedule=schedule))), detour(odd), data_of())
    allowed = (edit(schedule=schedule, may_skip=True), edit(schedule=schedule & Schedule(batches=[1, 3])))
    for controller in allowed:
        watch = HookCallback(controllers=controller)
        run(stage, trainer(watch, limit_val_batches=0), detour(odd), data_of())
        assert watch.effects()[0].fired == 2


@pytest.mark.documents("reliability/a-controllers-layers-run-in-some-batches-only")
def test_one_layer_that_runs_is_enough() -> None:
    watch = HookCallback(controllers=FunctionController(["used", "spare"], lambda x: x + 1, schedule=EVERY))
    fit(detour(odd), data_of(), watch)
    assert {effect.layer.rpartition(".")[2]: effect.fired for effect in watch.effects()} == {"used": 5, "spare": 2}


@pytest.mark.documents("reliability/a-controllers-layers-run-in-some-batches-only")
def test_a_plain_hook_says_by_an_attribute_that_it_may_be_skipped() -> None:
    class Plain(Hook):
        def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
            return output + 1

    with pytest.raises(NeverFired, match="for the first time in batch 0"):
        run("predict", trainer(HookCallback(controllers=Plain("spare"))), detour(odd), data_of())
    Plain.may_skip = True
    run("predict", trainer(HookCallback(controllers=Plain("spare"))), detour(odd), data_of())


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.documents("reliability/a-training-step-leaves-out-a-controllers-first-batch")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_a_training_step_leaves_out_does_not_count(accumulate: int) -> None:
    class Picky(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
            return None if batch_idx < 2 else super().training_step(batch, batch_idx)

    def always(call: int) -> bool:
        return True

    fit(Picky(Detour(always)), data_of(), HookCallback(controllers=edit()), accumulate_grad_batches=accumulate)
    with pytest.raises(NeverFired, match="for the first time in batch 2"):
        fit(Picky(Detour(never)), data_of(), HookCallback(controllers=edit()), accumulate_grad_batches=accumulate)


def switching(model: Detour, switch: Callable[[], None]) -> Module:
    """Call ``switch`` after the model's first layer in each pass."""
    model.used.register_forward_hook(lambda *_: switch())
    return Module(model)


@pytest.mark.documents("reliability/a-controller-is-switched-on-or-off-within-its-first-batch")
def test_a_controller_that_is_switched_on_behind_its_layers_is_asked_in_the_next_batch() -> None:
    steer = FunctionController("used", lambda x: x + 1, schedule=EVERY)
    steer.disable()
    watch = HookCallback(controllers=steer)
    run("predict", trainer(watch), switching(Detour(never), steer.enable), data_of())
    assert watch.effects()[0].fired == 4
    spare = edit()
    spare.disable()
    with pytest.raises(NeverFired, match="for the first time in batch 1"):
        run("predict", trainer(HookCallback(controllers=spare)), switching(Detour(never), spare.enable), data_of())


@pytest.mark.documents("reliability/a-controller-is-switched-on-or-off-within-its-first-batch")
def test_a_controller_that_is_switched_off_before_its_layers_need_not_run() -> None:
    steer = edit()
    run("predict", trainer(HookCallback(controllers=steer)), switching(Detour(never), steer.disable), data_of())


def test_choices_of_tokens_that_come_later_are_no_silence() -> None:
    """The prompt's pass runs the layer and edits nothing."""
    steer = SteeringController("block:1", torch.ones(32), tokens="generated")
    watch = HookCallback(controllers=steer)
    run("predict", trainer(watch), module_of("llama"), data_of("llama"))
    assert watch.effects()[0].tokens > 0


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_may_skip_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match=r"may_skip=.* must be True or False"):
        FunctionController("spare", torch.tanh, may_skip=value)
    assert SteeringController("block:0", torch.ones(2), may_skip=True).may_skip
