"""Networks without tokens: convolutions with and without BatchNorm, an MLP on tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mi_crow_lightning import FunctionController, HookCallback, Schedule, SteeringController
from mi_crow_lightning.errors import HookError
from tests.callback.runs import assert_bit_equal
from tests.models import CLASSES, image_data, loader, mlp, trainer, vector_data
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched, fitted


class Residual(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def convolutions(norm: bool) -> Runs:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Residual(8, norm) for _ in range(3)))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    return classifier(model)


def classifier(model: nn.Module) -> Runs:
    return Runs(model, lambda m, batch: cross_entropy(m(batch[0]), batch[1]), lambda m, batch: m(batch[0]))


LAYERS = ["model.0", "model.1.0", "model.1.2", "model.1.1.conv", "model.1.1.norm", "model.3", "model.4"]


@pytest.mark.documents("compatibility/cnn-mlp-on-a-table/detectors")
@pytest.mark.parametrize("norm", [True, False])
def test_convolutions_are_watched_exactly(norm: bool) -> None:
    assert_watched(lambda: convolutions(norm), image_data(10), LAYERS)


@pytest.mark.documents("compatibility/cnn-mlp-on-a-table/controllers")
@pytest.mark.parametrize("layer", ["model.1.1", "model.1.1.norm", "model.4"])
@pytest.mark.parametrize("norm", [True, False])
def test_convolutions_are_steered_exactly(norm: bool, layer: str) -> None:
    assert_steered(lambda: convolutions(norm), image_data(10), layer)


def test_an_edit_before_batch_norm_is_in_its_running_mean_as_by_hand() -> None:
    def trained(steer: bool) -> dict[str, Any]:
        module = convolutions(norm=True)
        if not steer:
            module.model[1][1].conv.register_forward_hook(lambda m, a, y: y + 1.0)
        hook = FunctionController("model.1.1.conv", lambda x: x + 1.0, schedule=Schedule())
        return fitted(lambda: module, image_data(8), *([HookCallback(controllers=hook)] if steer else []))[0]

    assert_bit_equal(trained(True), trained(False))


@pytest.mark.documents("compatibility/cnn-mlp-on-a-table/detectors")
def test_a_table_is_watched_and_steered_exactly() -> None:
    assert_watched(lambda: classifier(mlp()), vector_data(10), ["model.0", "model.1", "model.3", "model.5"])
    assert_steered(lambda: classifier(mlp()), vector_data(10), "model.1")


@pytest.mark.documents("compatibility/cnn-mlp-on-a-table/controllers")
@pytest.mark.parametrize(
    ("make", "data", "layer", "shape"),
    [
        (lambda: classifier(mlp()), vector_data, "model.1", r"\(4, 32\)"),
        (lambda: convolutions(False), image_data, "model.0", r"\(4, 8, 14, 14\)"),
    ],
    ids=["mlp", "cnn"],
)
def test_asking_for_tokens_where_there_are_none_is_an_error(make: Any, data: Any, layer: str, shape: str) -> None:
    steer = SteeringController(layer, torch.ones(8 if "14" in shape else 32), tokens="last")
    message = rf"tokens='last' needs an activation \(batch, tokens, features\), and '{layer}' has shape {shape}: use"
    with pytest.raises(HookError, match=message):
        trainer(HookCallback(controllers=steer)).predict(make(), loader(data(4)))


def over_time() -> Runs:
    torch.manual_seed(0)
    return classifier(nn.Sequential(nn.Conv1d(3, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5, CLASSES)))


def test_convolutions_over_time_have_no_tokens_in_their_second_dimension() -> None:
    torch.manual_seed(1)
    data = [(torch.randn(3, 6), torch.tensor(i % CLASSES)) for i in range(4)]
    assert_watched(over_time, data, ["model.0"], channels=1)
    assert_steered(over_time, data, "model.0")
    steer = FunctionController("model.0", lambda x: x * 2, tokens="last")
    with pytest.raises(HookError, match=r"'model.0' gives \(batch, channels, positions\), with shape \(4, 6, 5\): use"):
        trainer(HookCallback(controllers=steer)).predict(over_time(), loader(data))
