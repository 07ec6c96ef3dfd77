"""Alarms in evaluations: long ones, and those that come between two batches of an optimizer step."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.alarms import Alarm, NonFinite, Rule, engine
from tests.models import Module, loader, mlp, trainer, vector_data


class Loss(Rule):
    """Keeps the losses of the steps."""

    def __init__(self) -> None:
        super().__init__("loss")
        self.seen: list[float] = []

    def judge(self, values: Any) -> None:
        self.seen.append(values[-1])


@pytest.mark.documents("reliability/a-validation-comes-between-two-batches-of-a-step-with-an-alarm")
def test_a_validation_between_two_batches_of_a_step_takes_no_loss_of_it() -> None:
    """Losses are 0, 1, 2, ...; four make a step, and a validation follows every second one."""

    class Counting(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 0 + batch_idx

    rule = Loss()
    watch = HookCallback(ActivationStatistics("model.0"), alarms=[Alarm(rule, "log"), Alarm(NonFinite(), "log")])
    batches = loader(vector_data(8), 1)
    trainer(watch, accumulate_grad_batches=4, val_check_interval=2).fit(Counting(mlp()), batches, batches)
    assert rule.seen == [1.5, 5.5] and watch.fired() == []


def test_what_a_micro_batch_gave_before_a_validation_is_of_training() -> None:
    class Spoilt(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (math.nan if batch_idx == 1 else 1.0)

    watch = HookCallback(ActivationStatistics("model.0"), alarms=Alarm(NonFinite(), "log", most=1))
    batches = loader(vector_data(8), 1)
    trainer(watch, accumulate_grad_batches=4, val_check_interval=2).fit(Spoilt(mlp()), batches, batches)
    assert [(one.stage, one.batch_idx, one.reading) for one in watch.fired()] == [("train", 1, "loss")]


def test_a_long_evaluation_holds_few_numbers_and_names_its_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MOST", 20)
    module, held = Module(mlp()), []
    watch = HookCallback(ActivationStatistics("model.*"), alarms=Alarm(NonFinite(), "log"))

    class Peek(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *event: Any) -> None:
            assert watch._alarms._watch is not None
            held.append(len(watch._alarms._evaluated) + len(watch._alarms._watch._noted))
            module.batch = len(held)

    def spoil(layer: Any, args: Any, y: Tensor) -> Tensor | None:
        return y * math.nan if module.batch in (2, 30) else None  # in batch 2 first

    module.batch = 0  # type: ignore[assignment]
    module.model[3].register_forward_hook(spoil)  # type: ignore[index, union-attr]
    trainer(watch, Peek()).validate(module, loader(vector_data(40), 1), verbose=False)
    assert len(held) == 40 and max(held) <= 20 + 6
    assert [(one.layer, one.batch_idx) for one in watch.fired()] == [("model.3", 2)]
