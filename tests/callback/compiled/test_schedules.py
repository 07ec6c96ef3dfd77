"""Hooks that go on and off in a compiled run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest

from mi_crow_lightning import HookCallback, ScaleController, Schedule
from tests.callback.compiled.cases import QUIET, Counted, in_place, small_mlp
from tests.callback.runs import run
from tests.models import trainer, vector_data

pytestmark = QUIET


@pytest.mark.documents(
    "compatibility/two-schedules-that-go-on-and-off/detectors",
    "compatibility/two-schedules-that-go-on-and-off/controllers",
)
def test_two_schedules_that_go_on_and_off_by_themselves() -> None:
    counted, module = Counted(), small_mlp()
    hooks = [
        ScaleController("model.3", 2.0, hook_id="even", schedule=Schedule("predict", every_n_batches=2)),
        ScaleController("model.0", 2.0, hook_id="third", schedule=Schedule("predict", every_n_batches=3)),
        ScaleController("model.3", 2.0, hook_id="all", schedule=Schedule("predict")),
    ]
    watch = HookCallback(controllers=hooks)
    run("predict", trainer(watch), in_place(module, counted.backend), vector_data(48))
    assert {effect.hook: effect.fired for effect in watch.effects()} == {"even": 6, "third": 4, "all": 12}
    assert (counted.graphs, counted.breaks) == (4, 0)


@pytest.mark.documents(
    "compatibility/two-schedules-that-go-on-and-off/detectors",
    "compatibility/two-schedules-that-go-on-and-off/controllers",
)
def test_with_a_third_schedule_the_hooks_are_called_by_one_graph() -> None:
    counted, watching = Counted(), []
    for n in (2, 3, 4):
        schedule = Schedule("predict", every_n_batches=n)
        watching.append(ScaleController("model.3", 2.0, hook_id=f"every {n}", schedule=schedule))
    callback = HookCallback(controllers=watching)
    run("predict", trainer(callback), in_place(small_mlp(), counted.backend), vector_data(48))
    assert {effect.hook: effect.fired for effect in callback.effects()} == {"every 2": 6, "every 3": 4, "every 4": 3}
    assert (counted.graphs, counted.breaks) == (1, 0)


def test_switching_a_hook_off_and_on_in_a_run() -> None:
    steer = ScaleController("model.3", 2.0)

    class Switch(pl.Callback):
        def on_predict_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *rest: Any) -> None:
            (steer.enable if batch_idx % 2 else steer.disable)()

    watch = HookCallback(controllers=steer)
    run("predict", trainer(Switch(), watch), in_place(small_mlp(), "eager"), vector_data(20))
    assert [effect.fired for effect in watch.effects()] == [2]
