"""Tensors that are not plain ones, in a Trainer: detectors are left out of such a pass, and the run is unharmed.

nn.TransformerEncoder makes nested tensors in evaluation; per-sample gradients run the model inside vmap.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    ActivationStatistics,
    Detector,
    Hook,
    HookCallback,
    HookError,
    LayerActivationDetector,
    ProjectionDetector,
    Schedule,
    SteeringController,
    attached,
)
from mi_crow_lightning.errors import UnreadableActivation
from tests.callback.runs import assert_bit_equal, fingerprint, told
from tests.models import loader, trainer

LONG = torch.tensor([[5, 6, 7, 8, 3, 2, 1], [9, 8, 7, 6, 5, 4, 3]])
SHORT = torch.tensor([[5, 6, 7, 8, 0, 0, 0], [9, 8, 7, 6, 5, 4, 3]])


class Encoder(pl.LightningModule):
    """Its layers return nested tensors wherever a batch is padded, and gradients are off."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embed, self.encoder = nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2)

    def validation_step(self, ids: Tensor, batch_idx: int) -> None:
        self.encoder(self.embed(ids), src_key_padding_mask=(ids == 0) if (ids == 0).any() else None)

    def predict_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        result: Tensor = self.encoder(self.embed(ids), src_key_padding_mask=ids == 0)
        return result


class KeepsAll(Detector):
    """Keeps what it is given, as a user's own detector might."""

    def __init__(self, **options: Any) -> None:
        super().__init__("model", **options)
        self.kept: list[Tensor] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.kept.append(x)


class KeepsInProcess(KeepsAll):
    def process_activations(self, module: nn.Module, input: Any, output: Any) -> None:
        self.kept.append(output)


class PerSample(pl.LightningModule):
    """Trains with clipped per-sample gradients in every second batch, with ordinary ones in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.model = nn.Linear(8, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.model(x).tanh())
        return result

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        weights = {name: weight.detach() for name, weight in self.named_parameters()}

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(self, weights, (x[None],)).square().mean()
            return result

        if batch_idx % 2 == 0:
            rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, batch)
            for name, weight in self.named_parameters():
                weight.grad = rows[name].clamp(-1, 1).mean(0)
        else:
            self(batch).square().mean().backward()
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def rows(count: int = 16) -> list[Tensor]:
    return list(torch.randn(count, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.documents("reliability/the-activation-is-a-nested-tensor")
@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("layer", ["encoder.layers.*", "encoder.layers.1"])
@pytest.mark.parametrize("kind", [ActivationStatistics, LayerActivationDetector])
def test_a_detector_skips_nested_tensors_and_stays_on(kind: Any, layer: str, inference_mode: bool) -> None:
    torch.manual_seed(0)
    module, detector = Encoder(), kind(layer)
    watch = HookCallback(detector)
    with told("nested tensor", RuntimeWarning) as texts:
        trainer(watch, inference_mode=inference_mode).validate(
            module, loader([*SHORT, *LONG, *SHORT], 2), verbose=False
        )
    assert "stays on" in texts[0]
    assert detector.enabled
    (expected,) = (
        (row.value, row.layer) for row in alone(kind, layer) if row.layer.endswith("1") and row.name == "mean"
    )
    (seen,) = ((row.value, row.layer) for row in watch.history() if row.layer.endswith("1") and row.name == "mean")
    assert seen == expected  # the plain batch is read, and nothing else


def alone(kind: Any, layer: str) -> Any:
    torch.manual_seed(0)
    watch = HookCallback(kind(layer))
    trainer(watch).validate(Encoder(), loader([*LONG], 2), verbose=False)
    return watch.history()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.documents("reliability/the-activation-is-a-nested-tensor")
def test_a_controller_at_nested_tensors_raises() -> None:
    watch = HookCallback(controllers=SteeringController("encoder.layers.0", torch.ones(32)))
    with pytest.raises(HookError, match=r"layer 'encoder\.layers\.0'.*nested tensor"):
        trainer(watch).predict(Encoder(), loader([*SHORT], 2))


class Doubles(Hook):
    """A hook that edits nested tensors, which need no shape for that."""

    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
        return output * 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_edit_of_nested_tensors_is_made_and_not_counted() -> None:
    module = Encoder()
    watch = HookCallback(controllers=Doubles("encoder.layers.1"))
    (doubled,) = trainer(watch).predict(module, loader([*SHORT], 2))
    (bare,) = trainer().predict(module, loader([*SHORT], 2))
    assert torch.equal(doubled, bare * 2)
    assert not any(effect.tokens for effect in watch.effects())


DETECTORS: dict[str, Any] = {
    "statistics": lambda: ActivationStatistics("model", schedule=Schedule()),
    "captures": lambda: LayerActivationDetector("model"),
    "projections": lambda: ProjectionDetector("model", torch.ones(4), schedule=Schedule()),
    "a user's own": lambda: KeepsAll(schedule=Schedule()),
    "a user's process_activations": lambda: KeepsInProcess(schedule=Schedule()),
}


@pytest.mark.documents("reliability/the-model-runs-inside-vmap-or-the-like")
@pytest.mark.parametrize("kind", DETECTORS)
def test_per_sample_gradients_leave_detectors_out_and_the_weights_alone(kind: str) -> None:
    bare, hooked, detector = PerSample(), PerSample(), DETECTORS[kind]()
    trainer().fit(bare, loader(rows()))
    with told("torch.func", RuntimeWarning) as texts:
        trainer(HookCallback(detector)).fit(hooked, loader(rows()))
    assert_bit_equal(fingerprint(bare)["weights"], fingerprint(hooked)["weights"])
    assert "vmap" in texts[0] and "stays on" in texts[0]
    assert detector.enabled and not hooked.model._forward_hooks
    if isinstance(detector, KeepsAll):
        assert [one.shape for one in detector.kept] == [(4, 4)] * 2  # the two plain batches
    if isinstance(detector, LayerActivationDetector):
        assert detector.get_captured().shape == (4, 4)


def test_each_run_warns_again() -> None:
    watch = HookCallback(ActivationStatistics("model", schedule=Schedule()))
    for _ in range(2):
        with told("torch.func", RuntimeWarning):
            trainer(watch).fit(PerSample(), loader(rows()))


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_outside_a_trainer_it_is_an_error(transform: str) -> None:
    net, x = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), torch.stack(rows(3))
    runs: dict[str, Any] = {
        "vmap": lambda: torch.func.vmap(net)(x),
        "grad": lambda: torch.func.grad(lambda x: net(x).sum())(x),
        "jvp": lambda: torch.func.jvp(net, (x,), (x,)),
    }
    detector = LayerActivationDetector("0")
    with attached(net, detector), pytest.raises(HookError, match=r"torch\.func") as raised:
        runs[transform]()
    assert isinstance(raised.value.original_error, UnreadableActivation) and detector.get_captured() is None


def test_a_controller_acts_inside_vmap() -> None:
    net, x = nn.Sequential(nn.Linear(8, 4), nn.Identity()), torch.stack(rows(3))
    with attached(net, SteeringController("0", torch.arange(4.0), 2.0)):
        steered = torch.func.vmap(net)(x)
    torch.testing.assert_close(steered, net(x) + 2 * torch.arange(4.0), rtol=0, atol=1e-6)


@pytest.mark.documents("reliability/the-model-runs-inside-vmap-or-the-like")
def test_a_controller_in_per_sample_gradients_is_that_of_plain_ones() -> None:
    """The effects are not counted there, and no warning says that the controller changed nothing."""
    controller = SteeringController("model", torch.ones(4), schedule=Schedule())
    watch, steered = HookCallback(controllers=controller), PerSample()
    trainer(watch, limit_train_batches=1).fit(steered, loader(rows()))
    by_hand = PerSample()
    by_hand.model.register_forward_hook(lambda module, args, output: output + 1)
    trainer(limit_train_batches=1).fit(by_hand, loader(rows()))
    assert_bit_equal(fingerprint(steered)["weights"], fingerprint(by_hand)["weights"])
    assert not any(effect.tokens for effect in watch.effects())
