"""Alarms on what `torch.compile` compiled: layers inside graphs and around them, and snapshots of such models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule
from mi_crow_lightning.alarms import Alarm, NonFinite, Snapshot, WithoutEffect, default_alarms, replay
from tests.callback.compiled.cases import QUIET, WAYS, Chain, Counted, Silent, as_it_is
from tests.callback.runs import told
from tests.fresh_graphs import fresh_graphs  # noqa: F401
from tests.models import loader, trainer, vector_data

pytestmark = QUIET

MARK = 1e5  # in a batch: there the layer gives NaN


class Spoils(nn.Linear):
    """A layer whose output, or else whose gradient, is NaN where its input is large."""

    backward = False

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        spoilt = x.abs().amax() > 100
        if self.backward:  # the derivative of a root is infinite at 0, and 0 times infinity is NaN
            return y + torch.where(spoilt, y * 0, 1.0).sqrt() * 0
        return y * torch.where(spoilt, torch.nan, 1.0)


def spoilt(backward: bool = False) -> Silent:
    torch.manual_seed(0)
    module = Silent(Chain(nn.Linear(8, 8), nn.ReLU(), Spoils(8, 8), nn.Linear(8, 5)))
    module.model[2].backward = backward  # type: ignore[index, union-attr, assignment]
    return module


def batches(at: int, count: int = 6) -> Any:
    """Batches of four, of which one has the mark if there are that many."""
    data = vector_data(4 * count)
    if at < count:
        data[4 * at] = (data[4 * at][0] * MARK, data[4 * at][1])
    return loader(data, 4)


@pytest.mark.documents("reliability/an-activation-is-nan-in-a-graph-of-torch-compile-with-a-nonfinite-alarm")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("way", [as_it_is, *WAYS])
def test_a_layer_in_a_graph_is_named_with_its_micro_batch_and_replays(way: Any, backward: bool, tmp_path: Path) -> None:
    """Batch 3 is the first of the three that make step 1: the snapshot is of that batch, not of the last."""
    counted = Counted()
    alarm = Alarm(NonFinite(), [Snapshot(tmp_path), "stop"])
    watch = HookCallback(ActivationStatistics("model.*"), alarms=alarm)
    runner = trainer(watch, limit_val_batches=0, accumulate_grad_batches=3)
    module = way(spoilt(backward), counted.backend)
    with told("a snapshot of the pass is in", RuntimeWarning):
        runner.fit(module, batches(3), batches(3))
    (firing,) = watch.fired()
    assert (firing.layer, firing.step, firing.batch_idx, runner.global_step) == ("model.2", 1, 3, 2)
    assert counted.breaks == 0
    (file,) = tmp_path.iterdir()
    for other in (as_it_is, WAYS[1]):
        found = replay(file, other(spoilt(backward), "eager"))
        assert found.same and found.batch_finite, (other, found)
        assert (found.module, found.parameter) == (("", "model.2.bias") if backward else ("model.2", ""))


@pytest.mark.parametrize("way", [as_it_is, *WAYS])
def test_an_evaluation_names_the_batch(way: Any) -> None:
    watch = HookCallback(ActivationStatistics("model.*"), alarms=Alarm(NonFinite(), "log"))
    trainer(watch).validate(way(spoilt(), "eager"), batches(4), verbose=False)
    assert [(one.layer, one.stage, one.batch_idx) for one in watch.fired()] == [("model.2", "validate", 4)]


def test_layers_around_compiled_blocks_are_named() -> None:
    blocks = [Chain(kind(8, 8), nn.ReLU()) for kind in (nn.Linear, Spoils, nn.Linear)]
    for block in blocks:
        block.compile(backend="eager")
    watch = HookCallback(ActivationStatistics("model.*"), alarms=Alarm(NonFinite(), "log"))
    runner = trainer(watch, limit_val_batches=0, accumulate_grad_batches=2)
    runner.fit(Silent(Chain(*blocks, nn.Linear(8, 5))), batches(2), batches(2))
    assert [(one.layer, one.step, one.batch_idx) for one in watch.fired()] == [("model.1", 1, 2)]


@pytest.mark.parametrize("way", [as_it_is, *WAYS])
def test_controllers_in_a_graph_are_without_effect_only_where_they_are_on(way: Any) -> None:
    """A graph holds hooks that are not due: they are off in it all the same."""
    off = ScaleController("model.0", 2.0, hook_id="off")  # in predict alone
    works = ScaleController("model.0", 1.5, hook_id="works", schedule=Schedule(stages="train"))
    none = ScaleController("model.1", 1.0, hook_id="none", schedule=Schedule(stages="train"))
    alarms = [Alarm(WithoutEffect(), "log"), *default_alarms("log")[-2:-1]]
    watch = HookCallback(ActivationStatistics("model.*"), [off, works, none], alarms=alarms)
    with told("ran in stage 'train' and changed nothing"):
        trainer(watch, limit_val_batches=0).fit(way(spoilt(), "eager"), batches(99), batches(99))
    assert [(one.hook, one.step) for one in watch.fired()] == [("none", 2)]


def test_a_run_of_compiled_modules_in_which_nothing_fires_is_bit_identical(tmp_path: Path) -> None:
    weights = []
    for alarms in ([], [*default_alarms(), Alarm(NonFinite(), Snapshot(tmp_path))]):
        torch._dynamo.reset()
        module = spoilt()
        watch = HookCallback(ActivationStatistics("model.*"), alarms=alarms)
        trainer(watch, max_epochs=2, limit_val_batches=0).fit(WAYS[1](module, "eager"), batches(99), batches(99))
        weights.append([one.detach().clone() for one in module.parameters()])
        assert watch.fired() == []
    assert all(map(torch.equal, *weights))
