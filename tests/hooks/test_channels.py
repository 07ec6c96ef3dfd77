"""Readings and edits over channels, wherever the layer has them, against numpy in float64 and plain torch hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    ContrastDetector,
    HookCallback,
    LayerActivationDetector,
    PatchController,
    ProjectionDetector,
    SteeringController,
    attached,
)
from mi_crow_lightning.errors import HookError, VectorMismatch
from mi_crow_lightning.hooks import Controller, FunctionController, Hook, Layers
from mi_crow_lightning.metrics.changes import Change, measure_change
from tests.models import CLASSES, Module, loader, trainer

WIDTH = 6


class ChannelsLast(nn.Module):
    """A layer on the last dimension of an image, as in ConvNeXt, whose 1x1 convolutions are linear layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1))


# A model, the name of its layer, the model's input, and the dimension of the layer's channels. Sizes are alike.
Case = tuple[Callable[[], nn.Module], str, tuple[int, ...], int]
CASES: dict[str, Case] = {
    "Conv1d": (lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 3, padding=1)), "0", (4, 3, WIDTH), 1),
    "Conv2d": (lambda: nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1)), "0", (4, 3, WIDTH, WIDTH), 1),
    "Conv3d": (lambda: nn.Sequential(nn.Conv3d(3, WIDTH, 3, padding=1)), "0", (4, 3, WIDTH, WIDTH, WIDTH), 1),
    "ConvTranspose1d": (lambda: nn.Sequential(nn.ConvTranspose1d(3, WIDTH, 1)), "0", (4, 3, WIDTH), 1),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, groups=WIDTH)), "0", (4, WIDTH, 5, 5), 1),
    "GroupNorm": (lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.GroupNorm(2, WIDTH)), "1", (4, 3, WIDTH), 1),
    "BatchNorm1d": (lambda: nn.Sequential(nn.BatchNorm1d(WIDTH)).eval(), "0", (4, WIDTH), 1),
    "ReLU": (lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 3, padding=1), nn.Tanh()), "1", (4, 3, WIDTH), 1),
    "Linear": (lambda: ChannelsLast(nn.Linear(3, WIDTH)), "layer", (4, 3, WIDTH, WIDTH), -1),
    "LayerNorm": (lambda: ChannelsLast(nn.LayerNorm(WIDTH)), "layer", (4, WIDTH, WIDTH, WIDTH), -1),
}


@pytest.fixture(params=CASES)
def case(request: Any) -> tuple[nn.Module, str, Tensor, int]:
    torch.manual_seed(0)
    make, name, shape, dim = CASES[request.param]
    return make(), name, torch.randn(shape), dim


def plain(net: nn.Module, name: str, x: Tensor, edit: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What the layer returns, as a plain hook sees it; if it is edited, what the hook puts in its place."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output if edit is None else edit(output))

    handle = net.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0]


def hooked(net: nn.Module, hook: Hook, x: Tensor) -> Tensor:
    """What the model returns with a hook; the hooked layer is its last."""
    with torch.no_grad(), attached(net, hook):
        return net(x)


def test_norms_and_dead_channels_are_those_over_the_channels(case: tuple[nn.Module, str, Tensor, int]) -> None:
    net, name, x, dim = case
    rows = plain(net, name, x).movedim(dim, -1).double().numpy().reshape(-1, WIDTH)
    dead = float(np.sort(abs(rows).max(0))[1])  # two channels are at most this large
    hooks = [ActivationStatistics(name, dead_threshold=dead), LayerActivationDetector(name)]
    with torch.no_grad(), attached(net, hooks) as layers:
        net(x)
        got = {reading.name: reading.value for reading in layers.take_readings()}
    norms = np.linalg.norm(rows, axis=1)
    rms = np.sqrt((rows**2).mean(0))
    wanted = {"token_norm_mean": norms.mean(), "token_norm": norms.mean(), "token_norm_max": norms.max()}
    wanted |= {"dead_share": 2 / WIDTH, "outlier_ratio": rms.max() / np.median(rms)}
    for key, value in wanted.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key


def shaped(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """A vector of the channels in a shape that broadcasts along them."""
    return vector.reshape([WIDTH if i == dim % x.dim() else 1 for i in range(x.dim())])


VECTOR = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])


def along(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The projection on the vector, in float64, with the dimension of the channels kept; and the unit vector."""
    unit = shaped(VECTOR.double() / VECTOR.double().norm(), x, dim)
    return (x.double() * unit).sum(dim, keepdim=True), unit


EDITS: dict[str, tuple[Callable[..., Controller], Callable[[Tensor, int], Tensor]]] = {
    "steering": (
        lambda name: SteeringController(name, VECTOR, 2.0),
        lambda x, dim: x + 2 * shaped(VECTOR, x, dim),
    ),
    "strengths": (
        lambda name: SteeringController(name, VECTOR, torch.tensor([0.0, 1.0, 2.0, 3.0])),
        lambda x, dim: x + torch.arange(4.0).reshape(-1, *[1] * (x.dim() - 1)) * shaped(VECTOR, x, dim),
    ),
    "ablation": (
        lambda name: AblationController(name, VECTOR),
        lambda x, dim: x - along(x, dim)[0] * along(x, dim)[1],
    ),
    "clamp": (
        lambda name: ClampController(name, VECTOR, high=0.1),
        lambda x, dim: x + (along(x, dim)[0].clamp(max=0.1) - along(x, dim)[0]) * along(x, dim)[1],
    ),
    "patch": (
        lambda name: PatchController(name, VECTOR),
        lambda x, dim: shaped(VECTOR, x, dim).expand_as(x),
    ),
    "patch by row": (
        lambda name: PatchController(name, torch.stack([VECTOR * i for i in range(4)])),
        lambda x, dim: torch.stack([shaped(VECTOR * i, x, dim)[0].expand_as(x[0]) for i in range(4)]),
    ),
    "same norm": (
        lambda name: SteeringController(name, VECTOR, preserve_norm=True),
        lambda x, dim: (
            nn.functional.normalize(x.double() + shaped(VECTOR, x, dim), dim=dim)
            * x.double().norm(dim=dim, keepdim=True)
        ),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_direction_moves_its_channels(case: tuple[nn.Module, str, Tensor, int], edit: str) -> None:
    (net, name, x, dim), (make, by_hand) = case, EDITS[edit]
    expected = plain(net, name, x, lambda y: by_hand(y, dim)).float()
    edited = hooked(net, make(name), x)
    torch.testing.assert_close(edited, expected)
    if dim == 1 and x.dim() > 2:
        assert edited.stride() == net(x).stride(), "the next layer may call view()"


def test_a_stored_activation_of_a_convolution_is_put_back_whole(case: tuple[nn.Module, str, Tensor, int]) -> None:
    net, name, x, _ = case
    stored = plain(net, name, torch.flip(x, [0]))
    assert torch.equal(hooked(net, PatchController(name, stored), x), stored)


def test_projections_are_those_of_the_positions(case: tuple[nn.Module, str, Tensor, int]) -> None:
    net, name, x, dim = case
    with torch.no_grad(), attached(net, ProjectionDetector(name, VECTOR)) as layers:
        net(x)
        got = {reading.name: reading.value for reading in layers.take_readings()}
    y = plain(net, name, x)
    projected = along(y, dim)[0].numpy()
    cosines = projected / y.double().norm(dim=dim, keepdim=True).numpy()
    assert got["mean"] == pytest.approx(projected.mean(), rel=1e-5)
    assert got["max"] == pytest.approx(projected.max(), rel=1e-5)
    assert got["cosine"] == pytest.approx(cosines.mean(), rel=1e-5)


def test_a_vector_of_two_classes_is_a_difference_of_channels(case: tuple[nn.Module, str, Tensor, int]) -> None:
    net, name, x, dim = case
    layers, detector = Layers(net), ContrastDetector(name)
    layers.register_hook(None, detector)
    layers.begin_batch(None, {"label": [1, 0, 0, 1]})
    y = plain(net, name, x).movedim(dim, -1).double().reshape(4, -1, WIDTH).mean(1)
    expected = (y[[0, 3]].mean(0) - y[[1, 2]].mean(0)).float()
    torch.testing.assert_close(detector.vectors()[name], expected)


def test_effects_count_positions(case: tuple[nn.Module, str, Tensor, int]) -> None:
    net, name, x, dim = case
    y = plain(net, name, x)
    edited = y + shaped(torch.eye(WIDTH)[0], y, dim)
    row = measure_change(y, edited, dim)
    assert row[Change.TOKENS] == y.numel() / WIDTH
    assert row[Change.RATIOS] == pytest.approx((1 / y.double().norm(dim=dim)).sum().item(), rel=1e-5)


@pytest.mark.parametrize("channels", [1, -1, -2])
def test_the_user_may_say_where_the_channels_are(channels: int) -> None:
    net, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.randn(2, WIDTH, WIDTH)
    got = hooked(net, SteeringController("1", VECTOR, channels=channels), x)
    assert torch.equal(got, x + shaped(VECTOR, x, channels))
    watch = ActivationStatistics("1", statistics=["token_norm_mean"], histogram=False, channels=channels)
    with torch.no_grad(), attached(net, watch) as layers:
        net(x)
        (reading,) = layers.take_readings()
    assert reading.value == pytest.approx(x.double().norm(dim=channels).mean().item())


def test_a_dimension_that_is_not_there_is_refused() -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match="channels=0 must be the dimension of the channels"):
        SteeringController("1", VECTOR, channels=0)
    with pytest.raises(HookError, match=r"channels=3 is not a dimension of \(2, 6, 6\), from '1'"):
        hooked(net, SteeringController("1", VECTOR, channels=3), torch.randn(2, WIDTH, WIDTH))
    with pytest.raises(HookError, match=r"channels=3 is not a dimension of the activation \(2, 6, 6\) of '1'"):
        hooked(net, ActivationStatistics("1", channels=3), torch.randn(2, WIDTH, WIDTH))


def test_a_wrong_width_is_refused_with_the_number_of_channels() -> None:
    x = torch.randn(2, 3, WIDTH, WIDTH)
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(VectorMismatch, match=r"layer '0' has 6 features, and the layer's activations have 8: use"):
        hooked(net, SteeringController("0", VECTOR), x)
    message = (
        r"the steering vector has 6 features, and the activation of '0' has 8 \(channels, dimension 1 of its shape"
    )
    with pytest.raises(HookError, match=message):
        hooked(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1))), SteeringController("0", VECTOR), x)


def test_the_width_that_a_layer_declares_is_not_asked_where_channels_are_given() -> None:
    net, x = nn.Sequential(nn.Linear(3, 8)), torch.randn(2, WIDTH, 3)
    edited = hooked(net, SteeringController("0", VECTOR, channels=1), x)
    assert torch.equal(edited, net(x) + VECTOR[:, None])
    with pytest.raises(VectorMismatch, match="has 6 features, and the layer's activations have 8"):
        hooked(net, SteeringController("0", VECTOR, channels=-1), x)


def test_what_is_stored_of_a_convolution_has_positions_last() -> None:
    net, x = nn.Sequential(nn.Conv1d(3, 8, 1)), torch.randn(2, 3, WIDTH)
    stored = torch.randn(2, 8, WIDTH)
    assert torch.equal(hooked(net, PatchController("0", stored), x), stored)
    with pytest.raises(VectorMismatch, match="has 6 features, and the layer's activations have 8"):
        hooked(net, PatchController("0", VECTOR), x)


class Mover(nn.Module):
    """A module that returns the channels of its layer in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def test_where_neither_class_nor_shape_shows_it_a_direction_is_refused_and_statistics_warn() -> None:
    net, alike = nn.Sequential(Mover()), torch.randn(2, WIDTH, WIDTH, WIDTH)
    with pytest.raises(HookError, match=r"neither the class of '0' nor the shape .* pass channels= to the hook"):
        hooked(net, SteeringController("0", VECTOR), alike)
    with pytest.warns(UserWarning, match=r"'0': neither its class nor the shape .*, so 3 is taken"):
        hooked(net, ActivationStatistics("0"), alike)
    wide = torch.randn(2, WIDTH, 5, 7)
    expected = net(wide) + shaped(VECTOR, wide, 1)
    torch.testing.assert_close(hooked(net, SteeringController("0", VECTOR), wide), expected.detach())
    steered = hooked(net, SteeringController("0", VECTOR, channels=1), alike)
    torch.testing.assert_close(steered, (net(alike) + shaped(VECTOR, alike, 1)).detach())


def test_a_mask_of_tokens_is_refused_where_dimension_1_holds_channels() -> None:
    net, x = nn.Sequential(nn.Conv1d(3, WIDTH, 1)), torch.randn(2, 3, WIDTH)
    steer = FunctionController("0", lambda y: -y, when=lambda y, ctx: y[..., 0] > 0)
    with pytest.raises(HookError, match="has its channels in dimension 1, and so no tokens there"):
        hooked(net, steer, x)
    by_row = FunctionController("0", lambda y: -y, when=lambda y, ctx: y.flatten(1)[:, 0] > 0)
    y = net(x)
    expected = torch.where(y.flatten(1)[:, :1, None] > 0, -y, y)
    assert torch.equal(hooked(net, by_row, x), expected)


class Mixer(nn.Module):
    """A block of a model over tokens that mixes them by a convolution, as state-space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv1d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.convolution(x.mT).mT)


class OverTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mixer = nn.Embedding(9, WIDTH), Mixer()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.mixer(self.embedding(input_ids))


def test_the_channels_of_tokens_are_last_though_there_are_as_many_tokens() -> None:
    net, ids = OverTokens(), torch.randint(9, (2, WIDTH))
    expected = net(ids) + VECTOR
    torch.testing.assert_close(hooked(net, SteeringController("mixer", VECTOR), ids), expected.detach())


class Transposed(nn.Module):
    """A module that shows nothing, and returns ``(B, C, T)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT * 1


class OverTransposed(OverTokens):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Sequential(Transposed(), nn.Conv1d(WIDTH, WIDTH, 1))


@pytest.mark.parametrize(("layer", "options"), [("mixer.1", {}), ("mixer.0", {"channels": 1})])
def test_tokens_are_not_chosen_among_channels_though_there_are_as_many(layer: str, options: dict[str, int]) -> None:
    net, ids = OverTransposed(), torch.randint(9, (2, WIDTH))
    with pytest.raises(HookError, match=r"and .* gives \(batch, channels, positions\), with shape"):
        hooked(net, FunctionController(layer, lambda y: -y, tokens="last", **options), ids)
    with pytest.raises(HookError, match=r"needs an activation \(batch, tokens, features\), and .* gives \(2, 6, 6\)"):
        hooked(net, LayerActivationDetector(layer, tokens="last", **options), ids)


class Dense(nn.Module):
    """A block of a DenseNet: it has more channels than its last layer, here as many as that has columns."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.convolution(x)], 1)


def test_columns_are_not_taken_for_the_channels_of_convolutions() -> None:
    net, x = nn.Sequential(Dense()), torch.randn(2, 8, 5, WIDTH)
    with pytest.raises(HookError, match="neither the class of '0' nor the shape"):
        hooked(net, SteeringController("0", VECTOR), x)
    vector = torch.randn(8 + WIDTH)
    expected = net(x) + vector[:, None, None]
    steered = hooked(net, SteeringController("0", vector, channels=1), x)
    torch.testing.assert_close(steered, expected.detach())


@pytest.mark.parametrize("edit", ["steering", "ablation"])
def test_a_trainer_counts_the_positions_that_were_changed(edit: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.Flatten(), nn.Linear(WIDTH * 5, CLASSES))
    callback = HookCallback(controllers=EDITS[edit][0]("model.0"))
    data = [(torch.randn(3, 5), torch.tensor(0)) for _ in range(4)]
    trainer(callback).predict(Module(net), loader(data))
    y = net[0](torch.stack([x for x, _ in data])).detach()
    change = EDITS[edit][1](y, 1) - y
    (effect,) = callback.effects()
    assert effect.tokens == 4 * 5
    assert effect.mean_ratio == pytest.approx((change.norm(dim=1) / y.norm(dim=1)).mean().item(), rel=1e-4)


def test_before_a_module_the_channels_are_those_of_its_first_layer() -> None:
    net, x = nn.Sequential(nn.Sequential(nn.Conv1d(WIDTH, 4, 1), nn.Flatten(), nn.Linear(24, 4))), torch.randn(2, 6, 6)
    expected = net(x + VECTOR[:, None])
    steered = hooked(net, SteeringController("0", VECTOR, hook_type="pre_forward"), x)
    torch.testing.assert_close(steered, expected.detach())


@pytest.mark.parametrize("before", [False, True])
def test_hooks_before_a_layer_see_the_channels_of_its_input(before: bool) -> None:
    net, x = nn.Sequential(nn.Conv1d(WIDTH, 4, 1)), torch.randn(2, WIDTH, WIDTH)
    steer = SteeringController("0", VECTOR if before else VECTOR[:4], hook_type="pre_forward" if before else "forward")
    expected = net(x + VECTOR[:, None]) if before else net(x) + VECTOR[:4, None]
    torch.testing.assert_close(hooked(net, steer, x), expected.detach())


class Streams(nn.Module):
    """Four-dimensional activations ``(B, T, S, D)`` of a module that shows nothing of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1


def test_a_vector_shows_the_channels_of_an_unknown_module_by_its_width() -> None:
    net, x = nn.Sequential(Streams()), torch.randn(2, 3, 4, WIDTH)
    steer = SteeringController("0", VECTOR, preserve_norm=True)
    expected = nn.functional.normalize(x + VECTOR, dim=-1) * x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(hooked(net, steer, x), expected)
    by_token = FunctionController("0", lambda y: -y, when=lambda y, ctx: y[:, :, 0, 0] > 0)
    assert torch.equal(hooked(net, by_token, x), torch.where(x[:, :, :1, :1] > 0, -x, x))


def test_a_direct_call_takes_the_channels_of_the_module() -> None:
    convolution, x = nn.Conv1d(3, WIDTH, 1), torch.randn(2, 3, WIDTH)
    y = convolution(x).detach()
    edited = SteeringController("any", VECTOR).modify_activations(convolution, x, y)
    assert edited is not None
    torch.testing.assert_close(edited, y + VECTOR[:, None])


def test_chosen_tokens_of_a_capture_have_their_channels_last() -> None:
    net, ids = OverTokens(), torch.randint(9, (2, WIDTH))
    detector = LayerActivationDetector("embedding", tokens="all")
    y = net.embedding(ids)
    with torch.no_grad(), attached(net, detector) as layers:
        net(ids)
        got = {reading.name: reading.value for reading in layers.take_readings()}
    assert got["token_norm"] == pytest.approx(y.double().norm(dim=-1).mean().item(), rel=1e-5)
