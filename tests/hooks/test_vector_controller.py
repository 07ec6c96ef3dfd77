"""The base of steering, ablation, clamp and patch: whose vector it takes, and the product that it keeps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mi_crow_lightning.errors import RegistrationError, VectorMismatch
from mi_crow_lightning.hooks import HookContext, Layers, SteeringController, VectorController
from mi_crow_lightning.hooks.context import Place
from mi_crow_lightning.hooks.directions import unit_vector
from mi_crow_lightning.hooks.edits import added
from tests.hooks.controllers.cases import original

V = torch.randn(6, generator=torch.Generator().manual_seed(1))
W = torch.randn(6, generator=torch.Generator().manual_seed(2))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYERS = Layers(nn.Sequential(nn.Identity(), nn.Identity()))
HERE, THERE = (HookContext(Place(LAYERS, layer=str(index), index=index)) for index in (0, 1))


def activation(dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def products(controller: VectorController, x: Tensor, strength: float | None = None) -> tuple[Tensor, Tensor]:
    """The product of two passes."""
    given = controller.strength if strength is None else strength
    assert isinstance(given, float)
    one, other = (controller.scaled_vector_at(x, given, HERE) for _ in range(2))
    return one, other


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1.0, -0.3, 1e-3, 7.77, 0.0, -0.0])
def test_the_kept_product_gives_the_bits_of_one_made_in_each_pass(dtype: torch.dtype, strength: float) -> None:
    controller, x = SteeringController(None, V, strength), activation(dtype)
    wide = V.to(torch.promote_types(dtype, torch.float32))
    for _ in range(3):
        edited, expected = controller.change(x, controller.strength, HERE), added(x, wide, strength)  # type: ignore
        assert edited.dtype is dtype and torch.equal(edited, expected)
        assert torch.equal(edited.signbit(), expected.signbit())
    one, other = products(controller, x)
    assert one is other


CHANGES: dict[str, Callable[[SteeringController], object]] = {
    "the vector is set": lambda steer: setattr(steer, "vector", W),
    "the vector is written to": lambda steer: steer.vector.copy_(W),  # type: ignore[union-attr]
    "the strength is set": lambda steer: setattr(steer, "strength", -2.0),
    "both are loaded": lambda steer: steer.load_state_dict(SteeringController(None, W, 3.0).state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_product_is_made_again_when(change: str) -> None:
    controller, x = SteeringController(None, V, 2.0), activation()
    before, _ = products(controller, x)
    CHANGES[change](controller)
    after, again = products(controller, x)
    vector, strength = controller.vector, controller.strength
    assert isinstance(vector, Tensor) and isinstance(strength, float)
    assert after is again and torch.equal(after, strength * vector) and not torch.equal(after, before)


def test_zeros_of_either_sign_are_two_strengths() -> None:
    controller, x = SteeringController(None, V), activation()
    one, _ = products(controller, x, 0.0)
    other, _ = products(controller, x, -0.0)
    assert torch.equal(one.signbit(), (0.0 * V).signbit()) and torch.equal(other.signbit(), (-0.0 * V).signbit())


def test_each_layer_and_dtype_has_its_product() -> None:
    controller = SteeringController(None, {0: V, "1": W}, 2.0)
    for _ in range(2):
        for dtype in DTYPES:
            x = activation(dtype)
            for ctx, vector in ((HERE, V), (THERE, W)):
                wide = vector.to(torch.promote_types(dtype, torch.float32))
                assert torch.equal(controller.change(x, 2.0, ctx), added(x, wide, 2.0))


def test_a_width_that_does_not_fit_is_refused_also_after_one_that_did() -> None:
    controller = SteeringController(None, torch.ones(1), 2.0)
    assert controller.change(torch.zeros(2, 1), controller.strength, HERE).tolist() == [[2.0], [2.0]]  # type: ignore
    with pytest.raises(VectorMismatch, match="the steering vector has 1 features, and the activation of '0' has 6"):
        controller.change(activation(), controller.strength, HERE)  # type: ignore[arg-type]


def test_a_vector_that_is_learned_gets_its_gradients_in_every_step() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    steer = SteeringController("0", V, 2.0)
    Layers(model).register_hook(None, steer)
    model(activation())  # a product is kept
    assert isinstance(steer.vector, Tensor)
    steer.vector.requires_grad_()
    for step in range(1, 3):
        model(activation()).sum().backward()
        assert torch.equal(steer.vector.grad, torch.full((6,), step * 2.0 * 2 * 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["inference", "training"])
def test_one_product_serves_inference_and_training(first: str) -> None:
    controller, x = SteeringController(None, V, 2.0), activation().requires_grad_()
    with torch.inference_mode(first == "inference"):
        one, _ = products(controller, activation())
    controller.change(x, controller.strength, HERE).square().sum().backward()  # type: ignore[arg-type]
    assert not one.is_inference() and not one.requires_grad and x.grad is not None
    with torch.inference_mode():
        assert products(controller, activation())[0] is one


def test_a_fake_product_is_not_kept() -> None:
    controller = SteeringController(None, V, 2.0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        controller.change(mode.from_tensor(activation()), controller.strength, HERE)  # type: ignore[arg-type]
    assert torch.equal(products(controller, activation())[0], 2.0 * V)


def test_a_copy_takes_no_product_along() -> None:
    controller = SteeringController(None, V, 2.0)
    product, _ = products(controller, activation())
    for twin in (copy.deepcopy(controller), pickle.loads(pickle.dumps(controller))):
        assert not twin._scaled and torch.equal(products(twin, activation())[0], product)


class Mirror(VectorController):
    """A controller of a user's own."""

    described = "the mirror's normal"

    def checked(self, value: object, name: str) -> Tensor:
        return unit_vector(value, name)

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        unit = self.vector_at(x, ctx)
        return x - 2 * strength * (x @ unit)[..., None] * unit


def test_a_controller_of_ones_own() -> None:
    x, model = activation(torch.float64), nn.Sequential(nn.Identity(), nn.Identity())
    mirror, unit = Mirror("block:*", {0: 5 * V, 1: W}), V.double() / V.double().norm()
    assert isinstance(mirror.vector, dict)
    torch.testing.assert_close(mirror.vector[0], unit)
    handle = Layers(model).register_hook("0", mirror)
    torch.testing.assert_close(model(x), x - 2 * (x @ unit)[..., None] * unit)
    assert handle == mirror.id and "vector" not in mirror.state_dict()
    with original(VectorMismatch, "the mirror's normal has 6 features"):
        model(x[..., :5])
    with pytest.raises(RegistrationError, match=r"vector has nothing for layer '1' \(block 1\); it has: 0"):
        Layers(model).register_hook("1", Mirror("1", {0: V}))
    with pytest.raises(TypeError, match=r"vector\[0\] must be a tensor"):
        Mirror(0, {0: "joy"})  # type: ignore[dict-item]
