"""What the callback does to a Trainer and its model: nothing that changes a run, and nothing that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from mi_crow_lightning import (
    ActivationStatistics,
    HookTrainerCallback,
    NeverFired,
    RegistrationError,
    ScaleController,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.hf_trainer.wrapped_methods import METHODS
from mi_crow_lightning.warnings import NothingSeenWarning
from tests.hf_trainer.fits import CHECKPOINTING, InOrder, numbers, rows, trainer, weights
from tests.models import WIDTH, handles, llama

torch.set_num_threads(1)


def watching(**options: Any) -> HookTrainerCallback:
    return HookTrainerCallback(ActivationStatistics("block:*", statistics=["mean", "rms"]), report="off", **options)


class Trace(TrainerCallback):
    """The random state after each step."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.states.append(torch.get_rng_state())


def own(runner: Trainer) -> dict[str, Any]:
    """The methods that stand on the object in place of its class's, and its callbacks."""
    methods = {name: vars(runner).get(name) for name in METHODS}
    return {**methods, "callbacks": list(runner.callback_handler.callbacks)}


TAG = "activations_mean/model.layers.0"
RUNS: list[dict[str, Any]] = [
    {},
    {"gradient_accumulation_steps": 2, CHECKPOINTING: True},
    {"bf16": True},
    {"torch_compile": True, "torch_compile_backend": "eager"},
]


@pytest.mark.parametrize("options", RUNS, ids=lambda options: "-".join(options) or "plain")
def test_a_watched_run_is_the_run_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for watched in (False, True):
        model, trace = llama(), Trace()
        changes = dict(eval_strategy="steps", eval_steps=2, max_grad_norm=1.0, callbacks=[trace], **options)
        runner = trainer(model, tmp_path, Trainer, **changes)
        watch = watching(log_every_n_steps=1)
        if watched:
            watch.attach(runner)
        runner.train()
        assert not watched or [row.step for row in watch.history() if row.tag == TAG] == [1, 2, 3, 4, 5, 6]
        losses = [one for row in runner.state.log_history for name, one in row.items() if name.endswith("loss")]
        found.append((weights(model), losses, trace.states))
    (weights_1, losses_1, states_1), (weights_2, losses_2, states_2) = found
    assert losses_1 == losses_2 and len(losses_1) > 4
    assert all(map(torch.equal, states_1, states_2)) and len(states_1) == 6
    assert all(map(torch.equal, weights_1.values(), weights_2.values()))


class Failing(InOrder):
    """A Trainer that raises in the third step."""

    error: BaseException = ValueError("broke")

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and self.state.global_step == 2:
            raise self.error
        return loss


@pytest.mark.parametrize("error", [ValueError("broke"), KeyboardInterrupt(), SystemExit(3)])
def test_a_run_that_breaks_off_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    model = llama()
    runner, watch = trainer(model, tmp_path, Failing), watching(log_every_n_steps=1)
    runner.error, before, bare = error, own(runner), handles(model)
    with watch.attach(runner):
        assert own(runner) != before
        with pytest.raises(type(error)):
            runner.train()
        assert handles(model) == bare
    assert own(runner) == before and handles(model) == bare
    assert [row.step for row in watch.history() if row.name == "mean" and row.layer.endswith("0")] == [1, 2]
    runner.error = None  # the object goes on without the callback, and with it again
    with watch.attach(runner):
        runner.evaluate()
    assert own(runner) == before and handles(model) == bare


@pytest.mark.parametrize("method", ["train", "evaluate", "predict"])
def test_an_error_in_compute_metrics_leaves_nothing(method: str, tmp_path: Path) -> None:
    def broken(prediction: Any) -> Any:
        raise ZeroDivisionError

    model = llama()
    runner = trainer(model, tmp_path, compute_metrics=broken, eval_strategy="steps", eval_steps=2)
    watch, bare = watching(), handles(model)
    watch.attach(runner)
    with pytest.raises(ZeroDivisionError):
        runner.predict(rows(4)) if method == "predict" else getattr(runner, method)()
    assert handles(model) == bare
    assert not any(hook.registered for hook in watch.detectors)
    watch.detach()
    assert watch not in runner.callback_handler.callbacks and not any(name in vars(runner) for name in METHODS)


def test_a_trainer_without_attach_is_refused_before_it_trains_or_after_a_batch(tmp_path: Path) -> None:
    watch = watching()
    runner = trainer(llama(), tmp_path, callbacks=[watch])
    for run in (runner.train, runner.evaluate, lambda: runner.predict(rows(4))):
        with pytest.raises(RegistrationError, match=r"call watch\.attach\(trainer\)"):
            run()
    with watch.attach(runner):
        runner.train()
    assert watch.history() and watch in runner.callback_handler.callbacks  # as it was given


def test_one_callback_is_attached_to_one_trainer_at_a_time(tmp_path: Path) -> None:
    model, watch = llama(), watching()
    first, second = trainer(model, tmp_path), trainer(llama(), tmp_path)
    assert watch.attach(first) is watch.attach(first)
    with pytest.raises(RegistrationError, match="attached to another Trainer"):
        watch.attach(second)
    first.train()
    assert [row.step for row in watch.history() if row.tag == TAG] == [2, 4, 6]
    watch.detach()
    watch.detach()
    with watch.attach(second):
        second.evaluate()
    with pytest.raises(TypeError, match=r"give a transformers\.Trainer"):
        watch.attach(model)


def test_two_callbacks_leave_in_any_order(tmp_path: Path) -> None:
    model = llama()
    runner = trainer(model, tmp_path)
    before = own(runner)
    one, other = (watching(name=name) for name in ("a", "b"))
    other.detectors[0].name = "others"
    one.attach(runner)
    other.attach(runner)
    runner.train()
    one.detach()
    runner.evaluate()
    assert {row.stage for row in one.history()} == {"train"}
    assert {row.stage for row in other.history()} == {"train", "validate"}
    other.detach()
    assert own(runner) == before


def test_steps_outside_of_runs_are_warned_of(tmp_path: Path) -> None:
    runner, watch = trainer(llama(), tmp_path), watching()
    batch = {name: torch.stack([row[name] for row in rows(2)]) for name in rows(2)[0]}
    with watch.attach(runner), pytest.warns(NothingSeenWarning, match=r"prediction_step\(\) was called outside"):
        runner.prediction_step(runner.model, batch, True)
    assert not watch.history()


@pytest.mark.documents("compatibility/transformers-trainer/controllers")
def test_controllers_steer_where_they_are_asked_to(tmp_path: Path) -> None:
    model, direction = llama().eval(), torch.linspace(-1, 1, WIDTH)
    runner = trainer(model, tmp_path)
    plain, loss = runner.predict(rows(8)).predictions, runner.evaluate()["eval_loss"]
    watch = HookTrainerCallback(controllers=SteeringController("block:1", direction, strength=5.0), report="off")
    with watch.attach(runner):
        steered = runner.predict(rows(8)).predictions
        with pytest.warns(NothingSeenWarning, match="is off in this whole evaluate"):
            assert runner.evaluate()["eval_loss"] == loss
    batch = {name: torch.stack([row[name] for row in rows(8)]) for name in rows(2)[0]}
    with torch.no_grad():
        handle = model.model.layers[1].register_forward_hook(lambda module, args, out: out + 5.0 * direction)
        logits = [model(**{name: part[at : at + 4] for name, part in batch.items()}).logits for at in (0, 4)]
        handle.remove()
    mask = batch["attention_mask"].bool().numpy()
    assert (steered == torch.cat(logits).numpy())[mask].all() and (steered != plain).any()
    validating = ScaleController("block:2", 0.5, schedule=Schedule(stages="validate"))
    watch = HookTrainerCallback(controllers=validating, report="off")
    with watch.attach(runner):
        assert runner.evaluate()["eval_loss"] != loss
    (effect,) = watch.effects()
    assert (effect.stage, effect.tokens) == ("validate", int(mask.sum()))
    assert not handles(model)


def test_a_controller_whose_layer_never_runs_ends_the_run(tmp_path: Path) -> None:
    model = llama()
    model.unused = torch.nn.Linear(WIDTH, WIDTH)
    watch = HookTrainerCallback(controllers=ScaleController("unused", 2.0), report="off")
    with watch.attach(trainer(model, tmp_path)) as _, pytest.raises(NeverFired):
        watch._attached_to().predict(rows(4))
    assert not handles(model)


def test_evaluations_of_several_data_sets_are_one_reading(tmp_path: Path) -> None:
    runner = trainer(llama(), tmp_path, eval_dataset={"a": rows(8), "b": rows(4)})
    whole, watch = watching(), watching()
    with watch.attach(runner):
        runner.evaluate()
    with whole.attach(runner):
        runner.evaluate(rows(8) + rows(4))
    assert numbers(watch.history()) == numbers(whole.history()) and watch.history()
