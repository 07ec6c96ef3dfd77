"""Wrong arguments of the ready controllers, and what does not fit their layers: each is told in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mi_crow_lightning.errors import VectorMismatch
from mi_crow_lightning.hooks import AblationController, ClampController, Layers, ScaleController, TokenController
from tests.hooks.controllers.cases import BATCH, SPACE, VECTOR, original, run
from tests.models import WIDTH, llama

NAN = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize("make", [AblationController, lambda at, v: ClampController(at, v, 0)])
@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        ([1.0], TypeError, r"vector must be a tensor \(D,\).*, not a list: use torch.as_tensor"),
        (torch.ones(2, 2, 2), ValueError, r"vector must be a float tensor \(D,\).* of shape \(2, 2, 2\)"),
        (torch.arange(3), ValueError, "vector must be a float tensor .*, not torch.int64"),
        (NAN, ValueError, "vector holds 1 values that are not finite"),
        (torch.zeros(4), ValueError, "^vector has length 0: it has no direction"),
        ({3: torch.zeros(4)}, ValueError, r"^vector\[3\] has length 0"),
    ],
)
def test_wrong_directions(make: Any, vector: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(0, vector)


def test_a_subspace_is_told_from_a_direction() -> None:
    with pytest.raises(ValueError, match=r"^row 1 of vector has length 0: it has no direction"):
        AblationController(0, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"vector must be a float tensor \(D,\), not torch.float32 of shape \(3, 32\)"):
        ClampController(0, SPACE, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "value=None, low=None, high=None: give a value, or low, high or both"),
        ({"value": 1.0, "low": 0.0}, "value=1.0, low=0.0, high=None: give a value, or low, high or both"),
        ({"low": 2.0, "high": 1.0}, "low=2.0 is above high=1.0: the range is empty"),
        ({"value": float("inf")}, "value=inf must be a finite number"),
        ({"low": "a"}, "low='a' must be a finite number"),
        ({"high": True}, "high=True must be a finite number"),
    ],
)
def test_wrong_targets(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClampController(0, VECTOR, **given)


@pytest.mark.parametrize("factor", [None, "2", float("nan"), False])
def test_wrong_factors(factor: Any) -> None:
    with pytest.raises(ValueError, match=f"factor={factor!r} must be a finite number"):
        ScaleController(0, factor)


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (
            AblationController("block:1.mlp", torch.ones(3, 7)),
            "the ablated direction has 7 features, and .* 'model.layers.1.mlp' has 32",
        ),
        (
            ClampController("block:1.mlp", torch.ones(7), 0),
            "the clamped direction has 7 features, and .* 'model.layers.1.mlp' has 32",
        ),
    ],
)
def test_widths_that_do_not_fit(controller: TokenController, message: str) -> None:
    """An MLP declares no width, so its first activation shows it."""
    with original(VectorMismatch, message):
        run(llama().eval(), "model.layers", BATCH, controller)


def test_dependent_rows_add_nothing_to_the_subspace() -> None:
    """Whatever the lengths of the rows; more rows than dimensions among them."""
    mixed = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) @ SPACE
    lengths = torch.logspace(-6, 6, 40)[:, None]
    one, other = AblationController(1, SPACE), AblationController(1, mixed * lengths)
    assert one.basis.shape == other.basis.shape == (3, WIDTH)
    projectors = [basis.T @ basis for basis in (one.basis, other.basis)]
    torch.testing.assert_close(*projectors, rtol=1e-5, atol=1e-5)
    assert AblationController(1, VECTOR).basis.shape == (1, WIDTH)
    assert set(AblationController(1, {0: VECTOR, 1: SPACE}).basis) == {0, 1}


def test_what_lies_in_a_range_keeps_its_bits() -> None:
    seen = run(llama().eval(), "model.layers", BATCH, ClampController(1, VECTOR, low=-0.005, high=0.01))
    unit = VECTOR.double() / VECTOR.double().norm()
    along = seen.made[1].double() @ unit
    inside = (along > -0.0049) & (along < 0.0099)
    assert inside.any() and torch.equal(seen.passed_on[1][inside], seen.made[1][inside])
    after = seen.passed_on[1].double() @ unit
    real = BATCH["attention_mask"].bool()
    assert after[real].min() > -0.005 - 1e-6 and after[real].max() < 0.01 + 1e-6


def test_a_zero_keeps_its_sign_in_a_range() -> None:
    model, x = torch.nn.Sequential(torch.nn.Identity()), torch.tensor([[-0.0, 0.5]])
    Layers(model).register_hook("0", ClampController(None, torch.tensor([0.0, 1.0]), high=1.0))
    assert torch.equal(model(x).signbit(), torch.tensor([[True, False]]))


def test_a_subclass_must_say_what_changes() -> None:
    model = llama().eval()
    Layers(model).register_hook(1, type("Mine", (TokenController,), {})())
    with original(NotImplementedError, r"Mine must override change\(x, strength, ctx\)"):
        model(**BATCH)
