"""Alarms under ``transformers.Trainer``: those of Lightning's Trainer, at the same steps, and what they do."""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    HookTrainerCallback,
    RegistrationError,
    Schedule,
)
from mi_crow_lightning.alarms import (
    Action,
    Alarm,
    Firing,
    Jump,
    NonFinite,
    Rule,
    SaveCheckpoint,
    Threshold,
    WithoutEffect,
    default_alarms,
    load_snapshot,
    replay,
)
from mi_crow_lightning.errors import SnapshotError
from mi_crow_lightning.warnings import AlarmWarning, NothingSeenWarning
from tests import models
from tests.hf_trainer.fits import CHECKPOINTING, rows, trainer, weights
from tests.hf_trainer.test_readings import Same
from tests.models import handles, llama

torch.set_num_threads(1)

STEPS = 6


def faulty(at: int, fault: str) -> PreTrainedModel:
    """A model with a fault in one training batch: NaN of a block, or of a block's gradient, or a much larger block."""
    model, seen = llama(attention_dropout=0.0), []

    def spoil(layer: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor | None:
        if not model.training:
            return None
        seen.append(0)
        if len(seen) != at + 1:
            return None
        if fault == "gradient":
            out.register_hook(lambda gradient: gradient * math.nan)
            return None
        return out * (math.nan if fault == "activation" else 1e3)

    model.model.layers[1].register_forward_hook(spoil)
    return model


class Asked(Rule):
    """Keeps what it is asked about, and fires at one time."""

    def __init__(self, readings: str, at: int = -1, **options: Any) -> None:
        super().__init__(readings, **options)
        self.seen: list[float] = []
        self.at = at

    def judge(self, values: Any) -> str | None:
        self.seen.append(values[-1])
        return "is what was waited for" if len(self.seen) == self.at else None


class Kept(Action):
    """Keeps the weights that an alarm found."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def act(self, firing: Firing, run: Any) -> None:
        self.weights = weights(run.module)


def detectors() -> list[Any]:
    return [ActivationStatistics("block:*")]


def told(texts: Any) -> list[str]:
    return [str(one.message).replace("'model.model.", "'model.") for one in texts if one.category is AlarmWarning]


def by_lightning(model: PreTrainedModel, alarms: Any, accumulate: int) -> tuple[list[Firing], list[str], int]:
    watch = HookCallback(detectors(), report="off", root="model", alarms=alarms)
    options: dict[str, Any] = dict(max_epochs=-1, max_steps=STEPS, log_every_n_steps=1, num_sanity_val_steps=0)
    runner = models.trainer(watch, **options, accumulate_grad_batches=accumulate, val_check_interval=3 * accumulate)
    with warnings.catch_warnings(record=True) as texts:
        warnings.simplefilter("always")
        runner.fit(Same(model), DataLoader(rows(), batch_size=2), DataLoader(rows(8), batch_size=4))
    return watch.fired(), told(texts), runner.global_step


def by_transformers(
    model: PreTrainedModel, alarms: Any, accumulate: int, folder: Path, **changes: Any
) -> tuple[list[Firing], list[str], int]:
    watch = HookTrainerCallback(detectors(), report="off", alarms=alarms)
    options: dict[str, Any] = dict(eval_strategy="steps", eval_steps=3, logging_steps=1)
    runner = trainer(model, folder, gradient_accumulation_steps=accumulate, **{**options, **changes})
    before = handles(model)
    with warnings.catch_warnings(record=True) as texts, watch.attach(runner):
        warnings.simplefilter("always")
        runner.train()
        assert handles(model) == before
    return watch.fired(), told(texts), int(runner.state.global_step)


def as_transformers_counts(firing: Firing) -> Firing:
    """In a fit, Lightning counts the steps before the batch that trained last, transformers those after it."""
    return firing._replace(step=firing.step + 1, text=firing.text.replace("'model.model.", "'model."))


ALARMS: dict[str, Any] = {
    "default": lambda: "default",
    "warn and stop": lambda: default_alarms(["warn", "stop"]),
    "readings": lambda: [
        Alarm(Jump(["rms", "loss"], window=3, warmup=2), ["warn", "stop"]),
        Alarm(Threshold("rms", above=1e-6, stages="validate"), "warn"),
    ],
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("fault", "alarms"),
    [
        ("activation", "default"),
        ("activation", "warn and stop"),
        ("gradient", "warn and stop"),
        ("larger", "readings"),
    ],
)
def test_the_alarms_are_those_of_lightning(fault: str, alarms: str, accumulate: int, tmp_path: Path) -> None:
    """Of a gradient, the parameter that is named shows that it was read before the Trainer clipped all to NaN."""
    made, at = ALARMS[alarms], 3 * accumulate + accumulate - 1
    theirs, model = faulty(at, fault), faulty(at, fault)
    fired, texts, steps = by_lightning(theirs, made(), accumulate)
    found = by_transformers(model, made(), accumulate, tmp_path)
    assert found[0] == [as_transformers_counts(one) for one in fired] and fired
    assert found[1] == [str(one) for one in found[0]] and len(texts) == len(found[1])
    assert found[2] == steps == (STEPS if alarms == "default" else 4)
    if steps == 4:  # in the other runs all weights are NaN
        assert all(map(torch.equal, weights(model).values(), weights(theirs).values()))


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_the_loss_of_each_step_is_the_one_that_the_trainer_logs(accumulate: int, tmp_path: Path) -> None:
    """An epoch has six batches: of five, the second step has one."""
    rule, model = Asked("loss"), llama(attention_dropout=0.0)
    watch = HookTrainerCallback(detectors(), report="off", alarms=Alarm(rule))
    runner = trainer(model, tmp_path, logging_steps=1, gradient_accumulation_steps=accumulate, max_grad_norm=0.3)
    with watch.attach(runner):
        runner.train()
    logged = [row["loss"] for row in runner.state.log_history if "loss" in row]
    assert rule.seen == pytest.approx(logged, rel=1e-4) and len(logged) == STEPS
    if accumulate < 5:
        other = Asked("loss")
        by_lightning(llama(attention_dropout=0.0), Alarm(other), accumulate)
        by_transformers(llama(attention_dropout=0.0), Alarm(again := Asked("loss")), accumulate, tmp_path)
        assert again.seen == other.seen


def test_a_run_in_which_nothing_fires_is_bit_identical(tmp_path: Path) -> None:
    found = []
    for alarms in (None, default_alarms(["warn", "checkpoint", "snapshot", "stop"])):
        model = llama()
        runner = trainer(model, tmp_path, Trainer, max_grad_norm=1.0, gradient_accumulation_steps=2)
        if alarms is not None:
            watch = HookTrainerCallback(detectors(), report="off", alarms=alarms)
            watch.attach(runner)
            runner.train()
            assert watch.fired() == []
        else:
            runner.train()
        losses = [row["loss"] for row in runner.state.log_history if "loss" in row]
        found.append((weights(model), losses, torch.get_rng_state()))
    (one, losses, state), (other, losses_2, state_2) = found
    assert all(map(torch.equal, one.values(), other.values())) and losses == losses_2 and torch.equal(state, state_2)


@pytest.mark.documents("reliability/a-gradient-is-nan-under-transformers-trainer-with-a-nonfinite-alarm")
def test_a_stop_before_a_step_leaves_it_out(tmp_path: Path) -> None:
    """With the Trainer's clipping, and whatever follows in the same step."""
    kept, model = Kept(), faulty(3, "gradient")
    fired, _, steps = by_transformers(
        model, Alarm(NonFinite(), [kept, "stop"]), 1, tmp_path, max_grad_norm=1.0, weight_decay=0.1
    )
    assert [(one.layer, one.step, one.before_step) for one in fired] == [("model.layers.1", 4, True)] and steps == 4
    assert all(map(torch.equal, kept.weights.values(), weights(model).values()))
    assert all(bool(one.isfinite().all()) for one in weights(model).values())


@pytest.mark.parametrize("clipped", [False, True])
def test_a_stop_under_a_gradient_scaler_leaves_the_step_out(clipped: bool, tmp_path: Path) -> None:
    """The scaler needs gradients to look at, whether it has unscaled them or not."""
    kept, model = Kept(), llama(attention_dropout=0.0)
    watch = HookTrainerCallback(detectors(), report="off", alarms=Alarm(Asked("loss", at=3), [kept, "stop"]))
    runner = trainer(model, tmp_path, logging_steps=1, max_grad_norm=float(clipped))
    scaler = runner.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    runner.accelerator.unscale_gradients = lambda *_: scaler.unscale_(runner.optimizer.optimizer)
    with watch.attach(runner):
        runner.train()
    (firing,) = watch.fired()
    assert (firing.step, runner.state.global_step) == (3, 3)
    assert firing.value == pytest.approx(math.log(models.VOCABULARY), rel=0.2)  # not multiplied by the scale
    assert all(map(torch.equal, kept.weights.values(), weights(model).values()))


class Breaking(TrainerCallback):
    """Makes a weight NaN before the third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            with torch.no_grad():
                model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan


@pytest.mark.parametrize(
    "options",
    [{"torch_compile": True, "torch_compile_backend": "eager"}, {"bf16": True, CHECKPOINTING: True}],
    ids=lambda options: "-".join(options),
)
def test_compiled_checkpointed_and_bf16_runs_name_the_layer_and_replay(options: dict[str, Any], tmp_path: Path) -> None:
    alarm = Alarm(NonFinite(), ["snapshot", "stop"])
    watch = HookTrainerCallback(detectors(), report="off", alarms=alarm)
    changes: dict[str, Any] = dict(gradient_accumulation_steps=2, callbacks=[Breaking()], **options)
    with watch.attach(runner := trainer(llama(), tmp_path, **changes)), pytest.warns(AlarmWarning):
        runner.train()
    (firing,) = watch.fired()
    assert (firing.layer, firing.step, firing.batch_idx) == ("model.layers.1", 3, 4)
    (file,) = (tmp_path / "alarms").iterdir()
    found = replay(file, llama())
    assert found.same and found.module == "model.layers.1.mlp.down_proj" and not found.notes[1:]


def test_a_stop_in_an_evaluation_ends_the_training_around_it(tmp_path: Path) -> None:
    alarm = Alarm(Threshold("rms", above=1e-6, stages="validate"), "stop")
    fired, _, steps = by_transformers(llama(), alarm, 1, tmp_path)
    assert [(one.stage, one.step) for one in fired] == [("validate", 3)] and steps == 3


def test_a_checkpoint_is_one_of_the_trainer_and_resumes(tmp_path: Path) -> None:
    whole = llama(attention_dropout=0.0)
    trainer(whole, tmp_path / "whole").train()
    rule = Asked("rms", at=2, layers="*.0")
    model, alarms = llama(attention_dropout=0.0), [Alarm(rule, ["checkpoint", "stop"])]
    fired, _, steps = by_transformers(model, alarms, 1, tmp_path / "cut", eval_strategy="no")
    assert [one.step for one in fired] == [2] and steps == 2
    folder = tmp_path / "cut" / "checkpoint-2"
    assert (folder / "hooks.safetensors").is_file() and (folder / "trainer_state.json").is_file()
    again, watch = llama(attention_dropout=0.0), HookTrainerCallback(detectors(), report="off", alarms="default")
    runner = trainer(again, tmp_path / "cut")
    with watch.attach(runner):
        runner.train(resume_from_checkpoint=str(folder))
    assert all(map(torch.equal, weights(again).values(), weights(whole).values()))
    assert runner.state.global_step == STEPS


def test_alarms_go_on_in_a_resumed_run(tmp_path: Path) -> None:
    """The checkpoint is of before the fault, which a resumed run meets again."""
    options: dict[str, Any] = dict(save_strategy="steps", save_steps=2)
    alarms = [Alarm(NonFinite(), ["warn", "stop"])]
    first = by_transformers(faulty(3, "activation"), alarms, 1, tmp_path, **options)
    watch = HookTrainerCallback(detectors(), report="off", alarms=[Alarm(NonFinite(), "stop")])
    runner = trainer(faulty(1, "activation"), tmp_path)
    with watch.attach(runner):
        runner.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert watch.fired() == first[0] and runner.state.global_step == 4


def test_a_checkpoint_outside_of_training_is_said_to_be_missing(tmp_path: Path) -> None:
    alarm = Alarm(Threshold("rms", above=1e-6), "checkpoint")
    watch = HookTrainerCallback(detectors(), report="off", alarms=alarm)
    with watch.attach(runner := trainer(llama(), tmp_path)), pytest.warns(AlarmWarning, match="only training has some"):
        runner.evaluate()
    assert not list(tmp_path.iterdir())


def test_a_controller_without_effect_is_named_and_switched_off(tmp_path: Path) -> None:
    idle = FunctionController("block:0", lambda x: x + 0, hook_id="idle", schedule=Schedule(stages="train"))
    alarm = Alarm(WithoutEffect(), ["log", "switch off"])
    watch = HookTrainerCallback(controllers=idle, report="off", alarms=alarm)
    with watch.attach(runner := trainer(llama(), tmp_path, logging_steps=1)), pytest.warns(NothingSeenWarning):
        runner.train()
    assert [(one.hook, one.layer, one.step) for one in watch.fired()] == [("idle", "model.layers.0", 3)]
    assert not idle.enabled


class Raising(Action):
    def act(self, firing: Firing, run: Any) -> None:
        raise ZeroDivisionError(firing.layer)


def test_an_action_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    model = faulty(2, "activation")
    watch, before = HookTrainerCallback(detectors(), report="off", alarms=Alarm(NonFinite(), Raising())), handles(model)
    runner = trainer(model, tmp_path)
    with watch.attach(runner), pytest.raises(ZeroDivisionError, match=r"model\.layers\.1"):
        runner.train()
    assert handles(model) == before and not any(hook.registered for hook in watch.detectors)
    assert watch._alarms._live is None and watch not in runner.callback_handler.callbacks
    assert len(watch.fired()) == 1 and pickle.loads(pickle.dumps(watch)).fired() == watch.fired()


@pytest.mark.parametrize("fault", ["activation", "gradient"])
def test_a_snapshot_replays_and_names_the_layer(fault: str, tmp_path: Path) -> None:
    alarm = Alarm(NonFinite(), ["snapshot", "stop"])
    (firing,), (text,), _ = by_transformers(faulty(3, fault), alarm, 2, tmp_path)
    file = tmp_path / "alarms" / "NonFinite-train-step2-rank0.pt"
    assert str(file) in text and firing.step == 2 and firing.batch_idx == 3
    found = replay(file, faulty(0, fault))
    assert found.same and (found.layer or found.gradient_layer) == "model.layers.1" and found.batch_finite
    assert found.notes == ("the loss is that of model(**batch): what else a Trainer computes is not run again",)
    assert not replay(file, llama()).same  # a model without the fault
    for other in (Same(llama()), object()):
        with pytest.raises(SnapshotError, match="needs the model that transformers' Trainer trained"):
            replay(file, other)  # type: ignore[arg-type]


def test_a_snapshot_replays_with_the_weights_and_random_states_of_the_pass(tmp_path: Path) -> None:
    rule, model = Asked("loss", at=3), llama()
    assert any(getattr(one, "p", 0) or getattr(one, "attention_dropout", 0) for one in model.modules())
    by_transformers(model, Alarm(rule, ["snapshot", "stop"]), 1, tmp_path)
    (file,) = (tmp_path / "alarms").iterdir()
    assert replay(file, llama()).loss == pytest.approx(rule.seen[2], rel=1e-6)
    content = load_snapshot(file)
    with pytest.raises(SnapshotError, match=r"LlamaForCausalLM gives no loss for .*'input_ids'.*"):
        replay({**content, "batch": {"input_ids": content["batch"]["input_ids"]}}, llama())
    with pytest.raises(SnapshotError, match=r"does not take the snapshot's batch, with \['chosen'\]"):
        replay({**content, "batch": {"chosen": 1}}, llama())
    with pytest.raises(SnapshotError, match="takes its inputs by name"):
        replay({**content, "batch": [1]}, llama())


def test_what_this_trainer_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"saves all checkpoints in its output_dir: leave folder= out"):
        HookTrainerCallback(detectors(), alarms=Alarm(NonFinite(), SaveCheckpoint("there")))
    with pytest.raises(ValueError, match="has no controllers"):
        HookTrainerCallback(detectors(), alarms=Alarm(NonFinite(), "switch off"))


def test_layers_that_are_not_hooked_are_warned_of(tmp_path: Path) -> None:
    alarm = Alarm(Threshold("rms", above=1, layers="block:9"))
    watch = HookTrainerCallback(detectors(), report="off", alarms=alarm)
    with watch.attach(runner := trainer(llama(), tmp_path)), pytest.warns(NothingSeenWarning, match="cannot fire"):
        runner.evaluate()


def test_an_optimizer_that_steps_within_backward_is_refused(tmp_path: Path) -> None:
    runner = trainer(llama(), tmp_path)
    runner.args.optim, runner.optimizer = "lomo", torch.optim.SGD(runner.model.parameters())
    watch = HookTrainerCallback(detectors(), report="off", alarms="default")
    with watch.attach(runner), pytest.raises(RegistrationError, match="LOMO changes weights within"):
        runner.train()
    late = HookTrainerCallback(detectors(), report="off", alarms=Alarm(NonFinite(stages="validate")))
    with late.attach(runner := trainer(llama(), tmp_path)):
        runner.evaluate()
