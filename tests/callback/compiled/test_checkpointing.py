"""Gradient checkpointing in a compiled graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from tests.callback.compiled.cases import QUIET, as_it_is, assert_same_numbers, in_place, small_llama, whole, wrapped
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
