"""What happens in a run of ``transformers.Trainer`` stands in its event file, as under Lightning's Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from mi_crow_lightning import (
    ActivationStatistics,
    Detector,
    HookCallback,
    HookTrainerCallback,
    Schedule,
    SteeringController,
    _warned,
)
from mi_crow_lightning.alarms import Alarm, NonFinite, Threshold
from mi_crow_lightning.loggers import EventRow, read_compact, read_events
from tests import models
from tests.hf_trainer.fits import in_tensorboard, rows, trainer, weights
from tests.hf_trainer.test_alarms import Raising, faulty
from tests.hf_trainer.test_attached import Failing
from tests.hf_trainer.test_readings import Same
from tests.models import WIDTH, handles, llama

torch.set_num_threads(1)

EVERY = Schedule()


class Noting(Detector):
    """Reports each batch, and warns in the third one of a stage."""

    def observe(self, x: torch.Tensor, ctx: Any) -> None:
        self.report_event(f"seen {ctx.moment.batch_idx}")
        if ctx.moment.batch_idx == 2:
            _warned.warn(f"the third batch of {ctx.moment.stage.value}")


class Louder(Detector):
    """Changes the strength of a controller in the fourth batch."""

    def __init__(self, steer: SteeringController) -> None:
        super().__init__("block:0", schedule=Schedule(stages="train"))
        self.steer = steer

    def observe(self, x: torch.Tensor, ctx: Any) -> None:
        if ctx.moment.batch_idx == 3:
            self.steer.strength = 0.75


def hooks() -> dict[str, Any]:
    late = Schedule(stages="train", start_step=2, stop_step=4)
    steer = SteeringController("block:1", torch.ones(WIDTH), strength=0.5, schedule=late, hook_id="up")
    alarms = [Alarm(Threshold("rms", above=1e-6, layers="*.2"), ["log", "warn"]), Alarm(NonFinite(), "log")]
    watched = [
        ActivationStatistics("block:*", statistics=["rms"]),
        Noting("block:0", schedule=EVERY, name="noting"),
        Louder(steer),
    ]
    return {"detectors": watched, "controllers": steer, "alarms": alarms, "report": "off"}


def events(folder: Path) -> list[EventRow]:
    return list(read_events(folder / "run"))


@pytest.mark.filterwarnings("ignore::mi_crow_lightning.warnings.MiCrowWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_events_are_those_of_lightning(accumulate: int, tmp_path: Path) -> None:
    model, watch = llama(attention_dropout=0.0), HookCallback(**hooks(), root="model")
    options: dict[str, Any] = dict(max_epochs=-1, max_steps=6, log_every_n_steps=2, num_sanity_val_steps=0)
    logger = TensorBoardLogger(str(tmp_path / "other"), name=None, version="run")
    options |= dict(accumulate_grad_batches=accumulate, val_check_interval=3 * accumulate, logger=logger)
    models.trainer(watch, **options).fit(Same(model), *loaders())
    again, other = llama(attention_dropout=0.0), HookTrainerCallback(**hooks())
    changes: dict[str, Any] = dict(gradient_accumulation_steps=accumulate, eval_strategy="steps", eval_steps=3)
    runner = trainer(again, tmp_path, **in_tensorboard(tmp_path), **changes)
    with other.attach(runner):
        runner.train()
    assert all(map(torch.equal, weights(model).values(), weights(again).values()))
    expected = [row._replace(step=row.step + 1) for row in events(tmp_path / "other")]
    found = events(tmp_path)
    assert [as_if_it_were_lightning(row) for row in found] == [as_if_it_were_lightning(row) for row in expected]
    assert {row.kind for row in found} == {"alarm", "switch", "strength", "detector", "warning"}
    assert not list(_warned.listeners) and len(list((tmp_path / "run").glob("events*"))) == 1


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(rows(), batch_size=2), DataLoader(rows(8), batch_size=4)


def as_if_it_were_lightning(row: EventRow) -> EventRow:
    """Without the number of the step in an alarm's text."""
    before, _, after = row.text.partition(", step ")
    return row._replace(text=f"{before} {after.partition(',')[2]}") if row.kind == "alarm" else row


@pytest.mark.parametrize("error", [ValueError("broke"), KeyboardInterrupt()])
def test_an_exception_is_the_last_event(error: BaseException, tmp_path: Path) -> None:
    model = llama()
    runner = trainer(model, tmp_path, Failing, **in_tensorboard(tmp_path))
    runner.error = error
    watches = [HookTrainerCallback(Noting("block:0", name=name), report="off", name=name) for name in ("a", "b")]
    with watches[0].attach(runner), watches[1].attach(runner), pytest.raises(type(error)):
        runner.train()
    (last,) = [row for row in events(tmp_path) if row.kind == "exception"]
    text = "ValueError: broke" if isinstance(error, ValueError) else "KeyboardInterrupt"
    assert last[:4] == ("train", 3, "exception", text)
    assert not list(_warned.listeners) and not handles(model)
    assert all(watch._events._trainer is None and watch._events._run is None for watch in watches)


def test_an_alarm_whose_action_raises_is_an_event_before_the_exception(tmp_path: Path) -> None:
    runner = trainer(faulty(2, "activation"), tmp_path, **in_tensorboard(tmp_path))
    alarm = Alarm(NonFinite(), Raising())
    watch = HookTrainerCallback(ActivationStatistics("block:*"), report="off", alarms=alarm)
    with watch.attach(runner), pytest.raises(ZeroDivisionError):
        runner.train()
    assert [(row.step, row.kind) for row in events(tmp_path)] == [(3, "alarm"), (3, "exception")]


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    runner = trainer(llama(), tmp_path, save_strategy="steps", save_steps=4)
    with HookTrainerCallback(ActivationStatistics("block:0"), report="off").attach(runner):
        runner.train()
    again = trainer(llama(), tmp_path, **in_tensorboard(tmp_path))
    with HookTrainerCallback(ActivationStatistics("block:0"), report="off").attach(again):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (row,) = [row for row in events(tmp_path) if row.kind == "resumed"]
    assert row[:4] == ("train", 5, "resumed", "training goes on from step 4, in epoch 0")


def test_evaluations_count_batches_and_steps_as_their_readings_do(tmp_path: Path) -> None:
    runner = trainer(llama(), tmp_path, **in_tensorboard(tmp_path))
    watch = HookTrainerCallback(
        [Noting("block:0", schedule=EVERY), ActivationStatistics("block:0", schedule=EVERY)], report="off"
    )
    with watch.attach(runner), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.train()
        runner.evaluate()
        runner.predict(runner.eval_dataset)
    found = [(row.stage, row.step, row.text) for row in events(tmp_path) if row.kind == "detector"]
    trained = [("train", step, f"seen {step - 1}") for step in range(1, 7)]
    evaluated = [("validate", 6, f"seen {batch}") for batch in range(2)]
    predicted = [("predict", 1 + batch, f"seen {batch}") for batch in range(2)]
    assert found == [*trained, *evaluated, *predicted]
    logged = {(row.stage, row.step) for row in read_compact(tmp_path / "run")}
    assert {("train", 6), ("validate", 6), ("predict", 2)} <= logged


def test_without_tensorboard_nothing_is_noted(tmp_path: Path) -> None:
    watch = HookTrainerCallback(Noting("block:0"), report="off")
    with watch.attach(runner := trainer(llama(), tmp_path)):
        runner.train()
        assert not watch._events.noted_by and not watch._events.waits
    assert not list(tmp_path.iterdir())
