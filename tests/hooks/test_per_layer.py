"""One value a layer: found by name, by the end of a name in either direction, or by block; cast once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.errors import HookError, RegistrationError, VectorMismatch
from mi_crow_lightning.hooks import AblationController, ClampController, Layers, PatchController, SteeringController
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, ends_alike
from tests.hooks.controllers.cases import BATCH, REAL, run, vectors
from tests.models import WIDTH, Module, llama

V = vectors(4)


def found(given: dict[Any, Any], layer: str, index: int | None) -> Any:
    return PerLayer(given, "vector", lambda value, name: value).of(layer, index)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"model.layers.2": "a", "layers.2": "b", 2: "c"}, "a"),
        ({"layers.2": "b", 2: "c"}, "b"),
        ({"2": "b", 12: "c"}, "b"),
        ({"model.model.layers.2": "b", "model.model.layers.12": "x", 2: "c"}, "b"),
        ({"model.layers.12": "x", 2: "c"}, "c"),
    ],
)
def test_the_name_goes_before_its_ends_and_they_before_the_block(given: dict[Any, str], value: str) -> None:
    assert found(given, "model.layers.2", 2) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({1: "a"}, r"vector has nothing for layer 'model.layers.2' \(block 2\); it has: 1$"),
        ({"ayers.2": 1, "layers.22": 2}, r"has nothing for layer .* it has: 'ayers.2', 'layers.22'"),
        ({i: i for i in range(3, 20)}, r"it has: 3, 4, 5, 6, 7, 8, 9, 10, \.\.\."),
        ({"layers.2": 1, "2": 2}, r"vector has several values for layer 'model.layers.2': those of 'layers.2', '2'"),
    ],
)
def test_none_or_several(given: dict[Any, Any], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        found(given, "model.layers.2", 2)
    with pytest.raises(RegistrationError, match=r"nothing for layer 'head'; it has"):
        found({2: 1}, "head", None)


@pytest.mark.parametrize(("one", "other"), [("a.b", "b"), ("b", "a.b"), ("a", "a"), ("h.1.mlp", "x.h.1.mlp")])
def test_names_that_end_alike(one: str, other: str) -> None:
    assert ends_alike(one, other)


@pytest.mark.parametrize(
    ("one", "other"), [("h.1", "h.11"), ("h.1", "h.1.mlp"), ("ah.1", "h.1"), ("x.h.1", "y.h.1"), (1, "1")]
)
def test_names_that_do_not(one: Any, other: str) -> None:
    assert not ends_alike(one, other)


class SteeringVectorLike(Mapping[str, Tensor]):
    """A mapping of someone's own."""

    def __init__(self, directions: dict[str, Tensor]) -> None:
        self._directions = directions

    def __getitem__(self, name: str) -> Tensor:
        return self._directions[name]

    def __iter__(self) -> Any:
        return iter(self._directions)

    def __len__(self) -> int:
        return len(self._directions)


@pytest.mark.parametrize(
    "given",
    [
        dict(enumerate(V)),
        {f"model.layers.{i}": v for i, v in enumerate(V)},
        SteeringVectorLike({f"module.model.layers.{i}": v for i, v in enumerate(V)}),
    ],
)
def test_each_layer_gets_its_own(given: Any) -> None:
    seen = run(llama().eval(), "model.layers", BATCH, SteeringController("block:1-2", given, 2.0))
    for i, (made, passed_on) in enumerate(zip(*seen, strict=True)):
        change = 2.0 * V[i] if i in (1, 2) else torch.zeros(WIDTH)
        assert torch.equal(passed_on[REAL], made[REAL] + change)


def test_parts_of_a_block_are_in_it() -> None:
    layers = Layers(llama())
    layers.register_hook(None, SteeringController("block:*.mlp", dict(enumerate(V))))
    with pytest.raises(RegistrationError, match=r"nothing for layer 'model.layers.0.self_attn' \(block 0\)"):
        layers.register_hook(None, SteeringController("block:*.attn", {f"layers.{i}": v for i, v in enumerate(V)}))


def test_names_of_the_bare_model_do_in_the_module_around_it() -> None:
    controller = SteeringController("block:*", {f"model.layers.{i}": v for i, v in enumerate(V)})
    Layers(Module(llama())).register_hook(None, controller)
    assert controller.registered


@pytest.mark.parametrize(
    "make", [SteeringController, AblationController, lambda at, v: ClampController(at, v, 0), PatchController]
)
def test_a_layer_left_out_is_refused_before_any_pass(make: Any) -> None:
    layers = Layers(llama())
    with pytest.raises(
        RegistrationError, match=r"(vector|source) has nothing for layer 'model.layers.3' \(block 3\); it has: 1, 2"
    ):
        layers.register_hook("block:2-3", make(None, {1: V[1], 2: V[2]}))
    assert layers.get_hooks() == []


def test_a_width_that_does_not_fit_is_told_at_its_layer() -> None:
    vectors = {1: V[1], 2: torch.ones(7)}
    with pytest.raises(
        VectorMismatch, match=r"layer 'model.layers.2' has 7 features, and the layer's activations .* 32"
    ):
        run(llama().eval(), "model.layers", BATCH, SteeringController("block:1-2", vectors))
    with pytest.raises(
        HookError, match=r"vector has 7 features, and the activation of 'model.layers.2.mlp' has 32"
    ) as caught:
        run(llama().eval(), "model.layers", BATCH, SteeringController("block:1-2.mlp", vectors))
    assert isinstance(caught.value.original_error, VectorMismatch)


def test_what_the_mapping_holds_is_checked() -> None:
    with pytest.raises(ValueError, match=r"vector\['h.1'\] must be a float tensor \(D,\), not torch.int64"):
        SteeringController(0, {"h.1": torch.arange(3)})
    with pytest.raises(ValueError, match="vector is an empty mapping: give a value for each layer, or one for all"):
        SteeringController(0, {})
    with pytest.raises(TypeError, match="vector: the key True does not name a layer"):
        SteeringController(0, {True: V[0]})


def test_a_cast_is_made_once_and_can_enter_autograd() -> None:
    casts, x = Casts(), torch.ones(2, dtype=torch.bfloat16)
    with torch.inference_mode():
        cast = casts.of(V, x)
    assert casts.of(V, x) is cast and cast.dtype is torch.bfloat16 and not cast.is_inference()
    assert casts.of(V, x, torch.float32) is V and casts.of(V.clone(), x) is not cast
    for twin in (copy.deepcopy(casts), pickle.loads(pickle.dumps(casts))):
        assert twin._made == {} and torch.equal(twin.of(V, x), cast)
    casts.clear()
    assert casts.of(V, x) is not cast
