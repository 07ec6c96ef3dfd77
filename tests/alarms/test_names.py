"""Alarms name layers as hooks do: relative to `root=`, and without what PEFT puts around them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule
from mi_crow_lightning.alarms import Alarm, NonFinite, Snapshot, replay
from tests.alarms.test_alarms import Faulty
from tests.callback.runs import data_of, fit, module_of, told
from tests.models import Module, llama

AT = 2

of_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_layers_are_named_relative_to_a_root(backward: bool, tmp_path: Path) -> None:
    alarm = Alarm(NonFinite(), [Snapshot(tmp_path), "stop"])
    watch = HookCallback(ActivationStatistics("*"), root="model", alarms=alarm)
    with told("a snapshot of the pass is in", RuntimeWarning):
        fit(Faulty(backward=backward), data_of(), watch)
    assert [one.layer for one in watch.fired()] == ["3"]
    found = replay(next(tmp_path.iterdir()), Faulty(backward=backward))
    assert found.same and (found.gradient_layer if backward else found.layer) == "3"
    assert "inside it" not in str(found)


def adapted(backward: bool) -> Module:
    """A LightningModule around an adapted model, with a fault in a block in one batch."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["up_proj", "down_proj"], r=2, task_type="CAUSAL_LM")

    class Tuned(Module):
        batch = -1

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.batch = batch_idx
            return super().training_step(batch, batch_idx)

        def spoil(self, layer: Any, args: Any, y: Tensor) -> Tensor | None:
            if self.batch != AT:
                return None
            if not backward:
                return y * math.nan
            y.register_hook(lambda gradient: gradient * math.nan)
            return None

    module = Tuned(peft.get_peft_model(llama(), config))
    module.model.get_submodule("base_model.model.model.layers.1.mlp").register_forward_hook(module.spoil)
    return module


@of_peft
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_layers_of_an_adapted_model_are_named_as_those_of_the_bare_one(backward: bool, tmp_path: Path) -> None:
    alarm = Alarm(NonFinite(), [Snapshot(tmp_path), "stop"])
    watch = HookCallback(ActivationStatistics("block:*"), alarms=alarm)
    with told("a snapshot of the pass is in", RuntimeWarning):
        fit(adapted(backward), data_of("llama"), watch)
    (firing,) = watch.fired()
    assert (firing.layer, firing.step) == ("model.model.layers.1", AT)
    found = replay(next(tmp_path.iterdir()), adapted(backward))
    assert found.same and (found.gradient_layer if backward else found.layer) == "model.model.layers.1"


def test_alarms_warn_of_no_layers_that_the_user_did_not_name_together() -> None:
    """The watch is on the layers of all hooks, and these may overlap."""
    one = ScaleController("model.0", 2.0, schedule=Schedule(stages="train"))
    fit(module_of(), data_of(), HookCallback(ActivationStatistics("model.*"), one, alarms="default"))
    both = HookCallback(ActivationStatistics(["model.*", "model.0"]), alarms="default")
    with told("1 of 6 layers fit several of these signatures"):
        fit(module_of(), data_of(), both)
