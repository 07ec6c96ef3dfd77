"""The trap of `torch.compile`: what was compiled before the hooks came, and what is left when they go."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule
from mi_crow_lightning.errors import NeverFired
from tests.callback.compiled.cases import QUIET, WAYS, Counted, Silent, in_place, small_mlp, three_blocks
from tests.callback.runs import assert_bit_equal, fingerprint, fit, run, told
from tests.models import assert_same_handles, handles, trainer, vector_data

pytestmark = QUIET


@pytest.mark.documents(
    "compatibility/hooks-that-come-after-a-compiled-run/detectors",
    "compatibility/hooks-that-come-after-a-compiled-run/controllers",
)
@pytest.mark.parametrize("way", WAYS)
def test_hooks_that_come_after_a_compiled_run_are_seen(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    counted, module = Counted(), small_mlp()
    module = way(module, counted.backend)
    before = handles(getattr(module, "_orig_mod", module))
    bare = run("predict", trainer(), module, vector_data(8))
    first = HookCallback(controllers=ScaleController("model.3", 2.0))
    with caplog.at_level(logging.INFO):
        scaled = run("predict", trainer(first), module, vector_data(8))
    assert caplog.text.count("what torch.compile compiled earlier in this process was forgotten") == 1
    second = HookCallback(ActivationStatistics("model.0"), ScaleController("model.3", 3.0, hook_id="thrice"))
    again = run("predict", trainer(second), module, vector_data(8))
    assert [effect.fired for effect in (*first.effects(), *second.effects())] == [2, 2]
    expected = run(
        "predict", trainer(HookCallback(controllers=ScaleController("model.3", 2.0))), small_mlp(), vector_data(8)
    )
    for ones, others in zip(scaled, expected, strict=True):
        torch.testing.assert_close(ones, others)
    assert not torch.equal(scaled[0], again[0])
    # Nothing stays: the model is the bare one again, though its graphs were made with hooks.
    for ones, others in zip(run("predict", trainer(), module, vector_data(8)), bare, strict=True):
        assert torch.equal(ones, others)
    assert_same_handles(before, getattr(module, "_orig_mod", module))
    assert torch._dynamo.config.skip_nnmodule_hook_guards and torch._dynamo.config.recompile_limit == 8


def test_of_two_modules_of_a_class_the_one_with_the_hook_is_seen() -> None:
    """torch's own guards would let the graph of the first serve for both."""
    module = three_blocks()
    watch = HookCallback(ActivationStatistics("model.1.0"), ScaleController("model.1.0", 2.0, schedule=Schedule()))
    run("validate", trainer(watch), module, vector_data(8))
    assert {row.layer for row in watch.history()} >= {"model.1.0"}
    assert [effect.fired for effect in watch.effects()] == [2]


def test_a_run_that_crashes_leaves_nothing() -> None:
    class Crash(pl.Callback):
        def on_train_batch_end(self, *event: Any) -> None:
            raise OSError("the disk is gone")

    module = in_place(small_mlp(), "eager")
    before = handles(module)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, vector_data(), HookCallback(ActivationStatistics("model.3")), Crash())
    assert_same_handles(before, module)
    assert torch._dynamo.config.skip_nnmodule_hook_guards


class Half(nn.Module):
    """Never calls one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


def test_a_layer_that_never_runs_is_told() -> None:
    detector = ActivationStatistics("model.*", schedule=Schedule())
    with told("these of its 2 layers never ran: model.unused"):
        run("predict", trainer(HookCallback(detector)), in_place(Silent(Half()), "eager"), vector_data(8))
    steer = HookCallback(controllers=ScaleController("model.unused", 2.0))
    with pytest.raises(NeverFired, match=r"none of its 1 layers ran there: model\.unused"):
        run("predict", trainer(steer), in_place(Silent(Half()), "eager"), vector_data(8))


@pytest.mark.documents("reliability/none-of-a-controllers-layers-runs")
def test_a_layer_of_a_graph_must_run_before_the_optimizer_steps() -> None:
    module = in_place(Silent(Half()), "eager")
    before = fingerprint(module)["weights"]
    schedule = Schedule(stages="train")
    with pytest.raises(NeverFired, match="in stage 'train' for the first time in batch 0"):
        fit(module, vector_data(8), HookCallback(controllers=ScaleController("model.unused", 2.0, schedule=schedule)))
    assert_bit_equal(before, fingerprint(module)["weights"])
    watch = HookCallback(controllers=ScaleController("model.used", 2.0, schedule=schedule))
    fit(in_place(Silent(Half()), "eager"), vector_data(8), watch)
    assert watch.effects()[0].fired == 2
