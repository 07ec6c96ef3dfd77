"""A resumed run goes on where it was, and readings reach the Trainer's loggers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import TrackioCallback

from mi_crow_lightning import ActivationStatistics, HookTrainerCallback, Schedule, SteeringController
from mi_crow_lightning.errors import HookStateError
from mi_crow_lightning.hf_trainer.state_file import read, write
from mi_crow_lightning.loggers import read_compact
from mi_crow_lightning.warnings import ResumeWarning
from tests.hf_trainer.fits import numbers, trainer, weights
from tests.models import WIDTH, handles, llama

torch.set_num_threads(1)
EVERY = Schedule(stages=["train", "validate"])


def hooks(**options: Any) -> HookTrainerCallback:
    steer = SteeringController("block:1", torch.linspace(-1, 1, WIDTH), strength=0.5, schedule=Schedule(stages="train"))
    watched = ActivationStatistics("block:*", schedule=EVERY)
    return HookTrainerCallback(watched, steer, report="off", **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_goes_on_where_it_was(accumulate: int, tmp_path: Path) -> None:
    """The checkpoint of step 5 lies between two readings, and with two batches a step in the second epoch."""
    options = dict(
        max_steps=8, logging_steps=4, save_strategy="steps", save_steps=5, eval_strategy="steps", eval_steps=4
    )
    options["gradient_accumulation_steps"] = accumulate
    whole, model = hooks(), llama()
    with whole.attach(runner := trainer(model, tmp_path, **options)):
        runner.train()
    resumed, again = hooks(), llama()
    with resumed.attach(runner := trainer(again, tmp_path, **options)):
        runner.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert numbers(resumed.history()) == [row for row in numbers(whole.history()) if row[1] > 5]
    assert resumed.effects() == whole.effects() and whole.effects()
    assert all(map(torch.equal, weights(model).values(), weights(again).values()))
    assert not handles(again)


def test_the_last_checkpoint_is_found_and_one_without_hooks_is_warned_of(tmp_path: Path) -> None:
    options = dict(save_strategy="steps", save_steps=3, max_steps=3)
    with hooks(name="a b").attach(runner := trainer(llama(), tmp_path, **options)):
        runner.train()
    file = tmp_path / "checkpoint-3" / "hooks-a%20b.safetensors"
    assert read(file)["version"] == 1
    options["max_steps"] = 6
    with hooks(name="a b").attach(runner := trainer(llama(), tmp_path, **options)) as watch:
        runner.train(resume_from_checkpoint=True)
    assert {row.step for row in watch.history()} == {4, 6}
    shutil.rmtree(tmp_path / "checkpoint-6")
    file.write_bytes(b"{}")
    runner, model = trainer(llama(), tmp_path, **options), llama()
    with hooks(name="a b").attach(runner), pytest.raises(HookStateError, match="not a readable safetensors file"):
        runner.train(resume_from_checkpoint=True)
    file.unlink()
    with hooks(name="a b").attach(runner), pytest.warns(ResumeWarning, match="holds no hooks-a%20b.safetensors"):
        runner.train(resume_from_checkpoint=True)
    assert not handles(model)


def test_a_state_file_keeps_what_a_state_may_hold(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"a": [1, None, "x", (True, 2.5)], 3: {"t": shared, "part": shared.T[1:], "nan": float("inf")}, "none": {}}
    write(tmp_path / "s", state)
    found = read(tmp_path / "s")
    assert found["a"] == state["a"] and found["none"] == {} and found[3]["nan"] == float("inf")
    assert torch.equal(found[3]["t"], shared) and torch.equal(found[3]["part"], shared.T[1:])
    with pytest.raises(HookStateError, match=r"state\['x'\]\[0\] is \{1\}: in a checkpoint"):
        write(tmp_path / "s", {"x": [{1}]})


@pytest.mark.documents("compatibility/transformers-trainer/logging")
def test_tensorboard_gets_numbers_histograms_and_the_report(tmp_path: Path, capsys: Any) -> None:
    watch = HookTrainerCallback(ActivationStatistics("block:*", statistics=["mean"]))
    runner = trainer(llama(), tmp_path, report_to="tensorboard", eval_strategy="steps", eval_steps=3)
    with watch.attach(runner):
        runner.train()
    logs = next(tmp_path.rglob("events.out.*")).parent
    rows = [(row.stage, row.step, row.layer, row.name, row.value) for row in read_compact(logs)]
    kept = [(row.stage, row.step, row.layer, row.name, row.value) for row in watch.history()]
    assert sorted(row[:4] for row in rows) == sorted(row[:4] for row in kept)
    assert [row[4] for row in sorted(rows)] == pytest.approx([row[4] for row in sorted(kept)])
    assert {row[1] for row in rows} == {2, 3, 4, 6}
    assert watch.report().callback == "HookTrainerCallback" and "HookTrainerCallback in train" in str(watch.report())
    events = EventAccumulator(str(logs)).Reload()
    (text,) = events.Tensors("hook_report/train/text_summary")
    assert "HookTrainerCallback in train" in text.tensor_proto.string_val[0].decode()
    # The Trainer's own log and its terminal hold none of it.
    assert not any("activations" in name for row in runner.state.log_history for name in row)
    assert "activations" not in capsys.readouterr().out


class Sent(TrackioCallback):
    """Trackio's callback, that keeps what it was to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.sent.append((state.global_step, json.loads(json.dumps(logs))))

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    setup = on_train_begin = on_train_end = on_save = on_push_begin = _nothing


def test_other_loggers_get_the_numbers_beside_those_of_the_trainer(tmp_path: Path) -> None:
    sent, watch = Sent(), HookTrainerCallback(ActivationStatistics("block:0", statistics=["rms"]))
    runner = trainer(llama(), tmp_path, callbacks=[sent])
    with watch.attach(runner):
        runner.train()
        runner.evaluate()
    ours = [(step, name) for step, logs in sent.sent for name in logs if "rms" in name]
    name = "activations_rms/model.layers.0"
    assert ours == [(2, name), (4, name), (6, name), (6, "eval_activations_rms/val/model.layers.0")]
    assert [step for step, logs in sent.sent if "loss" in logs] == [2, 4, 6]
    feature = watch.report().feature("logger")
    assert (feature.value, feature.note) == ("Sent", "all numbers, and no histograms")
