"""Gradient checkpointing in a compiled graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mi_crow_lightning import ActivationStatistics, Controller, Detector, HookCallback, Schedule, SteeringController
from tests.callback.compiled.cases import (
    QUIET,
    Silent,
    as_it_is,
    assert_same_numbers,
    in_place,
    small_llama,
    whole,
    wrapped,
)
from tests.callback.runs import checkpointed, fit
from tests.models import WIDTH, token_data

pytestmark = QUIET

CALLS_ARE_CHECKPOINTED = LlamaDecoderLayer.__call__ is not nn.Module.__call__  # hooks too, in transformers 4


def assert_trains_as_without_a_graph(way: Any, watched: str, steered: str) -> None:
    """Fit checkpointed blocks as they are and compiled: the readings and the weights are the same."""
    callbacks, weights = [], []
    for how in (as_it_is, way):
        steer = SteeringController(steered, torch.arange(WIDTH) / 8, 1.0, schedule=Schedule())
        callbacks.append(HookCallback(ActivationStatistics(watched), steer, log_every_n_steps=1))
        module = small_llama()
        checkpointed(module)
        fit(how(module, "aot_eager"), token_data(8), callbacks[-1])
        weights.append(torch.cat([weight.detach().flatten() for weight in module.parameters()]))
    assert_same_numbers(*callbacks)
    torch.testing.assert_close(*weights)


@pytest.mark.documents(
    "compatibility/gradient-checkpointing-in-a-graph/detectors",
    "compatibility/gradient-checkpointing-in-a-graph/controllers",
    "compatibility/gradient-checkpointing-in-a-graph/logging",
)
@pytest.mark.skipif(CALLS_ARE_CHECKPOINTED, reason="refused, see below")
@pytest.mark.parametrize("way", [whole, wrapped])
def test_checkpointed_blocks_are_counted_and_edited_once(way: Any) -> None:
    assert_trains_as_without_a_graph(way, "block:1", "block:0")


@pytest.mark.documents("compatibility/gradient-checkpointing-in-a-graph/detectors")
def test_hooks_inside_of_checkpointed_blocks_are_called_once_a_pass() -> None:
    assert_trains_as_without_a_graph(in_place, "block:1.mlp", "block:0.mlp")


class Mirrored(Controller):
    """Edits where the values say, which only a hook that is called can look at; notes which calls are repeated."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer, schedule=Schedule())
        self.again: list[bool] = []

    def edit(self, x: Tensor, ctx: Any) -> Tensor | None:
        self.again.append(ctx.recomputing)
        return -x if x.abs().max().item() > 0 else None


class Totals(Detector):
    """Keeps a number of each call, in Python."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer, schedule=Schedule())
        self.totals: list[float] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.totals.append(x.abs().sum().item())


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


@pytest.mark.documents("compatibility/hooks-that-cannot-be-traced/controllers")
def test_hooks_that_a_graph_calls_are_called_once_a_pass() -> None:
    hooks, effects, weights = [], [], []
    for how in (as_it_is, in_place):
        hooks.append((Mirrored("block:0.mlp"), Totals("block:1.mlp")))
        steer, watch = hooks[-1]
        callback, module = HookCallback(watch, steer), small_llama()
        checkpointed(module)
        fit(how(module, "aot_eager"), token_data(8), callback)
        effects.append([effect[:5] for effect in callback.effects()])
        weights.append(weights_of(module))
    (steered, watched), (steered_too, watched_too) = hooks
    passes = len(watched.totals)
    assert passes == len(watched_too.totals) == steered.again.count(False) == steered_too.again.count(False) > 0
    assert steered.again.count(True) == passes, "the recompute repeats the edit"
    assert steered_too.again.count(True) <= passes
    assert effects[0] == effects[1] != []
    torch.testing.assert_close(watched_too.totals, watched.totals)
    torch.testing.assert_close(*weights)


class WithStrengths(Silent):
    """Gives each row of a batch a strength, which the model does not take."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = dict(batch)
        batch["strength"] = torch.linspace(-1, 1, len(batch["input_ids"])) * (batch_idx + 1)
        return self.loss(inputs)


@pytest.mark.documents("compatibility/hooks-that-cannot-be-traced/controllers")
@pytest.mark.parametrize("recomputes", [False, True])
def test_strengths_of_a_batch_in_a_graph(recomputes: bool) -> None:
    effects, weights = [], []
    for how in (as_it_is, in_place):
        torch._dynamo.reset()
        steer = SteeringController("block:0.mlp", torch.arange(WIDTH) / 8, "batch", schedule=Schedule())
        callback, module = HookCallback(controllers=steer), WithStrengths(small_llama().model)
        if recomputes:
            checkpointed(module)
        fit(how(module, "aot_eager"), token_data(8), callback)
        effects.append([effect[:5] for effect in callback.effects()])
        weights.append(weights_of(module))
    assert effects[0] == effects[1] != []
    torch.testing.assert_close(*weights)
