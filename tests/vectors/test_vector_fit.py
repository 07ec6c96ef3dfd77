"""Whether a vector is for a model: names, layers, widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mi_crow_lightning import SteeringController, SteeringVector
from mi_crow_lightning.errors import VectorMismatch
from mi_crow_lightning.vectors import model_name
from tests.models import BLOCKS, WIDTH, Module, gpt2, llama, mlp, vit


def vector(*layers: str, width: int = WIDTH, model: str = "") -> SteeringVector:
    return SteeringVector({layer: torch.ones(width) for layer in layers}, model=model)


def test_names_are_found_under_another_root() -> None:
    model = llama()
    wrapped = Module(model)
    inner, outer = vector("model.layers.1", "model.layers.2.mlp"), vector("model.model.layers.1")
    assert inner.fitted_to(wrapped).layers == ("model.model.layers.1", "model.model.layers.2.mlp")
    assert outer.fitted_to(model).layers == ("model.layers.1",)
    assert outer.fitted_to(wrapped).layers == outer.layers
    assert vector("block:3", "block:0.attn").fitted_to(gpt2()).layers == ("transformer.h.3", "transformer.h.0.attn")
    inner.check_fits(model)


def test_a_fitted_vector_is_the_same_vector() -> None:
    given = SteeringVector({"block:1": torch.randn(WIDTH)}, method="pca", samples={"a": 2}, metadata={"b": 3})
    fitted = given.fitted_to(llama())
    assert torch.equal(fitted["model.layers.1"], given["block:1"]) and fitted.origin == given.origin
    SteeringController(fitted.layers[0], fitted[fitted.layers[0]])


def test_layers_that_the_model_lacks_are_named() -> None:
    with pytest.raises(VectorMismatch, match=r"no layer for the vector's 'model.layers.9': .*closest"):
        vector("model.layers.9").check_fits(llama())
    with pytest.raises(VectorMismatch, match=rf"'block:{BLOCKS}': .* the model has {BLOCKS} blocks"):
        vector(f"block:{BLOCKS}").check_fits(llama())
    with pytest.raises(VectorMismatch, match=rf"'block:\*' means {BLOCKS} layers of the model: name one"):
        vector("block:*").check_fits(llama())


@pytest.mark.parametrize(
    ("layer", "width"), [("block:1", WIDTH), ("block:1.mlp.up_proj", 48), ("model.embed_tokens", WIDTH)]
)
def test_another_width_is_refused(layer: str, width: int) -> None:
    vector(layer, width=width).check_fits(llama())
    with pytest.raises(VectorMismatch, match=rf"the direction of '{layer}' has 7 features, and '.*' .* has {width}"):
        vector(layer, width=7).check_fits(llama())


def test_a_width_that_cannot_be_told_is_not_checked() -> None:
    vector("block:1.mlp", width=7).check_fits(llama())
    vector("1", width=7).check_fits(mlp())


def test_names_of_models() -> None:
    model = llama()
    assert model_name(model) == model_name(Module(model)) == "LlamaForCausalLM"
    names = {
        "org/name": "org/name",
        "gpt2": "gpt2",
        "/home/me/models/gpt2": "gpt2",
        "./checkpoints/last": "last",
        "a/b/c": "c",
    }
    for given, wanted in names.items():
        model.config.name_or_path = given
        assert model_name(model) == model_name(Module(model)) == wanted
    assert model_name(vit()) == "ViTForImageClassification" and model_name(nn.Sequential()) == "Sequential"


def test_another_model_is_refused_unless_it_will_do() -> None:
    given = vector("block:1", model="GPT2LMHeadModel")
    given.check_fits(gpt2())
    message = r"made from model 'GPT2LMHeadModel', and this one is 'LlamaForCausalLM': .* any_model=True"
    with pytest.raises(VectorMismatch, match=message):
        given.check_fits(llama())
    given.check_fits(llama(), any_model=True)
