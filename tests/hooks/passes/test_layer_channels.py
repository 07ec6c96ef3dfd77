"""Where the channels of a layer's activation are, against what each layer is written to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.hooks.passes.layer_channels import channels_of


def dimension(layer: nn.Module, x: Tensor, before: bool = False) -> int:
    """The dimension of the channels in a layer's output, or its input."""
    return channels_of([layer], before).of(x if before else layer(x))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(6, 6), (4, 6, 6, 6), -1),
        (nn.LayerNorm(6), (4, 6, 6, 6), -1),
        (nn.RMSNorm(6), (4, 6, 6, 6), -1),
        (Conv1D(6, 6), (4, 6, 6), -1),
        (nn.Conv1d(6, 6, 1), (4, 6, 6), -2),
        (nn.Conv1d(6, 6, 1), (6, 6), -2),
        (nn.Conv2d(6, 6, 1), (4, 6, 6, 6), -3),
        (nn.Conv2d(6, 6, 1), (6, 6, 6), -3),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (4, 6, 6, 6), -3),
        (nn.Conv3d(6, 6, 1), (4, 6, 6, 6, 6), -4),
        (nn.ConvTranspose1d(6, 6, 1), (4, 6, 6), -2),
        (nn.ConvTranspose2d(6, 6, 1), (4, 6, 6, 6), -3),
        (nn.LazyConv1d(6, 1), (4, 6, 6), -2),
        (nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 6, 1)), (4, 6, 6), -2),
        (nn.BatchNorm1d(6), (4, 6), -1),
        (nn.BatchNorm1d(6), (4, 6, 6), -2),
        (nn.BatchNorm2d(6), (4, 6, 6, 6), -3),
        (nn.BatchNorm3d(6), (4, 6, 6, 6, 6), -4),
        (nn.InstanceNorm1d(6), (4, 6, 6), -2),
        (nn.InstanceNorm2d(6), (6, 6, 6), -3),
        (nn.GroupNorm(2, 6), (4, 6), -1),
        (nn.GroupNorm(2, 6), (4, 6, 6), -2),
        (nn.GroupNorm(2, 6), (4, 6, 6, 6, 6), -4),
        (nn.MaxPool1d(1), (4, 6, 6), -2),
        (nn.AdaptiveAvgPool3d(6), (4, 6, 6, 6, 6), -4),
        (nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU()), (4, 6, 6), -2),
        (nn.Sequential(nn.Sequential(nn.Conv1d(6, 6, 1)), nn.GroupNorm(2, 6), nn.Dropout(0.0)), (4, 6, 6), -2),
        (nn.Sequential(nn.Linear(6, 6), nn.GELU()), (4, 6, 6, 6), -1),
        (nn.Sequential(nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(216, 6)), (4, 6, 6, 6), -1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_class_says_it_where_sizes_do_not(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert dimension(layer, torch.zeros(shape)) == expected


def test_the_dimension_of_the_input_is_that_of_the_first_layer() -> None:
    net = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(216, 6))
    assert dimension(net, torch.zeros(4, 6, 6, 6), before=True) == -3


class ChannelsFirstNorm(nn.LayerNorm):
    """A layer norm over dimension 1, as in ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Moved(nn.Module):
    """A layer on the channels of an image, which it puts last, and back if asked."""

    def __init__(self, layer: nn.Module, back: bool) -> None:
        super().__init__()
        self.layer, self.back = layer, back

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.movedim(1, -1))
        return x.movedim(-1, 1) if self.back else x


class UserNorm(nn.Module):
    """A norm as models define their own: one weight for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class Block(nn.Module):
    """A residual block of convolutions and a norm over time, which returns ``(B, T, C)`` or ``(B, C, T)``."""

    def __init__(self, width: int, back: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.back = nn.Conv1d(width, width, 1), nn.LayerNorm(width), back

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.convolution(x).mT)
        return x.mT if self.back else x


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution, self.norm, self.relu = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm(self.convolution(x)))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (ChannelsFirstNorm(6), (4, 6, 5, 5), -3),
        (ChannelsFirstNorm(6), (4, 6, 5), -2),
        (Moved(nn.Linear(6, 8), back=False), (4, 6, 5, 7), -1),
        (Moved(nn.Linear(6, 8), back=True), (4, 6, 5, 7), -3),
        (Moved(nn.Conv2d(5, 8, 1), back=False), (4, 6, 5, 7), -3),
        (UserNorm(6), (4, 5, 3, 6), -1),
        (UserNorm(6), (4, 6, 6), -1),
        (Block(6, back=False), (4, 6, 5), -1),
        (Block(6, back=True), (4, 6, 5), -2),
        (Residual(6), (4, 6, 6, 6), -3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_shape_shows_what_a_module_does_with_its_layers(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    assert dimension(layer, torch.zeros(shape)) == expected


@pytest.mark.parametrize("layer", [ChannelsFirstNorm(5), Moved(nn.Linear(5, 5), back=True)])
def test_a_shape_that_fits_twice_shows_nothing(layer: nn.Module) -> None:
    assert dimension(layer, torch.zeros(4, 5, 5, 5)) == 0
    assert dimension(layer, torch.zeros(4, 5, 6, 6)) != 0


def in_its_model(model: nn.Module, name: str, x: Tensor) -> int:
    """The dimension of the channels in the output of one layer of a model."""
    tree, seen = ModuleTree(model), []
    tree.modules[name].register_forward_hook(lambda m, a, output: seen.append(output))
    model(x)
    return channels_of(tree.path(tree.modules[name])).of(seen[0])


@pytest.mark.parametrize(
    ("model", "name", "shape", "expected"),
    [
        (nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU()), "1", (4, 6, 6), -2),
        (nn.Sequential(nn.Sequential(nn.Conv1d(6, 6, 1)), nn.Sequential(nn.ReLU())), "1.0", (4, 6, 6), -2),
        (nn.Sequential(nn.ReLU(), nn.Conv3d(6, 6, 1)), "0", (4, 6, 6, 6, 6), -4),
        (nn.Sequential(nn.Linear(6, 6), nn.GELU()), "1", (4, 6, 6, 6), -1),
        (nn.Sequential(nn.Conv1d(6, 6, 1), nn.Flatten(), nn.ReLU()), "2", (4, 6, 6), -1),
        (nn.Sequential(nn.Linear(8, 24), nn.Unflatten(1, (6, 2, 2)), nn.ReLU()), "2", (4, 8), -3),
        (Residual(6), "relu", (4, 6, 6, 6), -3),
    ],
    ids=["after", "after, nested", "before", "last", "flattened", "unflattened", "by hand"],
)
def test_an_activation_function_has_its_channels_where_the_layer_before_it_has(
    model: nn.Module, name: str, shape: tuple[int, ...], expected: int
) -> None:
    assert in_its_model(model, name, torch.zeros(shape)) == expected
