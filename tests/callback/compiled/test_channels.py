"""Hooks on layers whose channels are not last, in graphs of `torch.compile`: the numbers of the uncompiled run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    HookCallback,
    ProjectionDetector,
    Schedule,
    SteeringController,
)
from tests.callback.compiled.cases import QUIET, Chain, Counted, Silent, as_it_is, assert_same_numbers, whole
from tests.models import CLASSES, loader, trainer

pytestmark = QUIET

CHANNELS = 6
VECTOR = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])


class Mixed(nn.Module):
    """A block of convolutions, norms and linear layers, as in ConvNeXt: the shape shows where its channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.norm, self.linear = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(self.convolution(x).movedim(1, -1))).movedim(-1, 1)


def network() -> Silent:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 64, CLASSES))
    return Silent(Chain(nn.Conv2d(3, CHANNELS, 1), Mixed(), head))


def predicted(way: Any, layer: str, edit: Any) -> tuple[list[Tensor], HookCallback, Counted]:
    torch._dynamo.reset()
    counted = Counted()
    every = Schedule(stages="predict")
    watch = ActivationStatistics(layer, statistics=["token_norm_mean", "dead_share", "rms"], schedule=every)
    project = ProjectionDetector("model.1" if layer == "model.0" else "model.0", VECTOR, schedule=every)
    callback = HookCallback([watch, project], [edit(layer)])
    torch.manual_seed(1)
    data = [(torch.randn(3, 8, 8), torch.tensor(i % CLASSES)) for i in range(8)]
    outputs: Any = trainer(callback).predict(way(network(), counted.backend), loader(data))
    return outputs, callback, counted


@pytest.mark.parametrize("layer", ["model.0", "model.1"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda layer: SteeringController(layer, VECTOR, 0.5),
        lambda layer: SteeringController(layer, VECTOR, 0.5, preserve_norm=True),
        lambda layer: AblationController(layer, VECTOR),
        lambda layer: ClampController(layer, VECTOR, low=0.0),
    ],
    ids=["steering", "same norm", "ablation", "clamp"],
)
def test_a_compiled_step_reads_and_moves_the_same_channels(layer: str, edit: Any) -> None:
    expected, eager, _ = predicted(as_it_is, layer, edit)
    found, compiled, counted = predicted(whole, layer, edit)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert_same_numbers(compiled, eager)
    assert (counted.graphs, counted.breaks) == (1, 0)
