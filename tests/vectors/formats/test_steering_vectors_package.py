"""Objects of the package steering-vectors, and of what looks like them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mi_crow_lightning import SteeringController, SteeringVector
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.vectors import from_steering_vectors, to_steering_vectors
from tests.models import WIDTH, gpt2, llama, token_data

ROLES = {"decoder_block": "", "self_attn": ".attn", "mlp": ".mlp"}


@pytest.mark.parametrize("kind", ROLES)
def test_taken_and_given_back(kind: str) -> None:
    given = SimpleNamespace(layer_activations={2: torch.randn(WIDTH), 0: torch.randn(WIDTH)}, layer_type=kind)
    taken = from_steering_vectors(given)
    assert list(taken) == [f"block:2{ROLES[kind]}", f"block:0{ROLES[kind]}"]
    for vector in (taken, taken.fitted_to(llama()), taken.fitted_to(gpt2())):
        back = to_steering_vectors(vector)
        assert back["layer_type"] == kind and list(back["layer_activations"]) == [2, 0]
        for block, activation in given.layer_activations.items():
            assert torch.equal(back["layer_activations"][block], activation)


def test_norms_before_and_after_attention_are_children_by_name() -> None:
    given = SimpleNamespace(layer_activations={1: torch.ones(WIDTH)}, layer_type="post_attention_layernorm")
    fitted = from_steering_vectors(given).fitted_to(llama())
    assert fitted.layers == ("model.layers.1.post_attention_layernorm",)
    assert to_steering_vectors(fitted)["layer_type"] == "post_attention_layernorm"


def test_the_real_package_steers_alike() -> None:
    package = pytest.importorskip("steering_vectors")
    model = llama().eval()
    ours = SteeringVector({f"model.layers.{i}": torch.randn(WIDTH) for i in (1, 2)})
    theirs = package.SteeringVector(**to_steering_vectors(ours))
    assert from_steering_vectors(theirs).fitted_to(model).only(*ours).layers == ours.layers
    batch = {name: value[None] for name, value in token_data(1)[0].items()}
    with torch.no_grad():
        with theirs.apply(model, multiplier=2.0):
            wanted = model(**batch).logits
        layers = Layers(model)
        for layer, direction in ours.items():
            layers.register_hook(layer, SteeringController(layer, direction, 2.0))
        found = model(**batch).logits
        layers.unregister_all_hooks()
        assert not torch.allclose(found, model(**batch).logits)
    torch.testing.assert_close(found, wanted)


def test_the_real_package_finds_the_same_principal_component() -> None:
    package = pytest.importorskip("steering_vectors")
    from mi_crow_lightning.metrics.class_directions import principal_difference
    from mi_crow_lightning.metrics.class_moments import ClassMoments

    negative, positive = torch.randn(2, 12, 6)
    moments = ClassMoments(6, ["difference"])
    moments.update(torch.cat([negative, positive]), torch.arange(24) // 12, torch.arange(24) % 12)
    found = principal_difference(moments)
    wanted = package.pca_aggregator()(positive, negative).double()
    torch.testing.assert_close(found / found.norm(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{1: torch.ones(2)}, SimpleNamespace(layer_activations={"h.1": torch.ones(2)}, layer_type="mlp"), None]
)
def test_other_objects_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"has no layer_activations, .* give a steering_vectors.SteeringVector"):
        from_steering_vectors(wrong)


def test_other_layers_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"layer_type='head' is not known: it must be one of 'decoder_block', 'self_at"
    ):
        from_steering_vectors(SimpleNamespace(layer_activations={1: torch.ones(2)}, layer_type="head"))
    with pytest.raises(ValueError, match=r"layer 'h.1.up': 'up' of a block is not one of attn, mlp, input_layernorm, "):
        to_steering_vectors(SteeringVector({"h.1.up": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"of several kinds, \['decoder_block', 'mlp'\]"):
        to_steering_vectors(SteeringVector({"h.1": torch.ones(2), "h.2.mlp": torch.ones(2)}))
