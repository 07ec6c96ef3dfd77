"""Copies, pickles and saved models carry no live hook, and hooks travel unregistered."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mi_crow_lightning.hooks import (
    AblationController,
    ActivationStatistics,
    ClampController,
    FunctionController,
    LayerActivationDetector,
    Layers,
    PatchController,
    ProjectionDetector,
    ScaleController,
    SteeringController,
)
from tests.models import WIDTH, assert_same_handles, handles, llama

IDS = torch.tensor([[3, 4, 5, 6]])


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved,
    "copy of a copy": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(model)))),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copied_model_carries_no_live_hook(kind: str) -> None:
    model = llama().eval()
    bare = model(IDS).logits
    layers = Layers(model)
    detector = LayerActivationDetector(keep="all")
    detector.unpicklable = lambda: None  # what a user's hook may hold must not matter
    layers.register_hook("block:*", detector)
    layers.register_hook("block:0", FunctionController(0, lambda x: x * 2))
    layers.register_hook("block:1", FunctionController(0, lambda x: x * 2, hook_type="pre_forward"))
    before = handles(model)
    edited = model(IDS).logits
    assert not torch.equal(edited, bare)
    twin = COPIES[kind](model)
    assert_same_handles(before, model)
    assert torch.equal(twin(IDS).logits, bare)  # the copy is not edited
    assert [len(held) for held in detector.get_captured().values()] == [1] * 4  # nor do its passes count
    # The copy generates, by itself.
    plain = llama().eval().generate(IDS, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin.generate(IDS, max_new_tokens=3, do_sample=False), plain)
    assert torch.equal(twin(IDS).logits, bare)
    layers.unregister_all_hooks()
    assert handles(model) == {}
    assert twin.state_dict().keys() == llama().state_dict().keys()


def test_the_original_keeps_working_and_the_copy_can_be_hooked() -> None:
    model = llama().eval()
    layers, detector = Layers(model), ActivationStatistics("block:*", statistics=["mean"], histogram=False)
    layers.register_hook(None, detector)
    twin = copy.deepcopy(model)
    own = ActivationStatistics("block:*", statistics=["mean"], histogram=False)
    others = Layers(twin)
    others.register_hook(None, own)
    twin(IDS)
    assert detector.readings() == [] and len(own.readings()) == 4
    model(IDS)
    assert detector.readings() == own.readings()
    assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 6)


def first_rows(x: torch.Tensor, ctx: Any) -> torch.Tensor:
    return torch.arange(len(x)) == 0


HOOKS: dict[str, Callable[[], Any]] = {
    "activations": lambda: LayerActivationDetector("block:*", hook_id="x", keep="all"),
    "statistics": lambda: ActivationStatistics("block:*", hook_id="x", statistics=["mean"]),
    "steering": lambda: SteeringController("block:*", torch.ones(WIDTH), 2.0, "last", hook_id="x"),
    "steering by layer": lambda: SteeringController("block:1", {1: torch.ones(WIDTH)}, torch.ones(1), hook_id="x"),
    "ablation": lambda: AblationController(
        "block:*", torch.ones(WIDTH), hook_id="x", strength=dict.fromkeys(range(4), 0.5)
    ),
    "clamp": lambda: ClampController("block:*", torch.ones(WIDTH), 1.0, hook_id="x", preserve_norm=True),
    "scale": lambda: ScaleController("block:*", 0.5, hook_id="x", when=first_rows),
    "patch": lambda: PatchController("block:1", torch.ones(WIDTH), hook_id="x"),
    "projection": lambda: ProjectionDetector("block:*", torch.ones(WIDTH), hook_id="x"),
    "function": lambda: FunctionController("block:*", torch.tanh, hook_id="x", on_error="warn"),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("travel", [copy.deepcopy, lambda hook: pickle.loads(pickle.dumps(hook))])
def test_hooks_travel_unregistered(kind: str, travel: Callable[[Any], Any]) -> None:
    model, hook = llama().eval(), HOOKS[kind]()
    layers = Layers(model)
    layers.register_hook(None, hook)
    first = model(IDS).logits
    twin = travel(hook)
    assert not twin.registered and twin.context is None and hook.registered
    assert (twin.id, twin.layer_signature, twin.hook_type) == (hook.id, hook.layer_signature, hook.hook_type)
    assert repr(twin.schedule) == repr(hook.schedule) and twin.on_error == hook.on_error
    assert len(pickle.dumps(twin)) < 100_000  # the model did not come along
    twin.disable()
    assert hook.enabled and layers.is_attached(hook)
    layers.unregister_hook(hook)
    twin.enable()
    layers.register_hook(None, twin)
    assert torch.equal(model(IDS).logits, first)


def test_a_copied_registry_has_no_hooks_and_works() -> None:
    layers = Layers(llama())
    detector = LayerActivationDetector("block:0")
    layers.register_hook(None, detector)
    copied = copy.deepcopy(layers)
    assert copied.get_hooks() == [] and copied.root is not layers.root
    own = LayerActivationDetector("block:0")
    copied.register_hook(None, own)
    copied.root(IDS)
    assert own.get_captured() is not None and detector.get_captured() is None
    assert copied.unregister_hook(own) and layers.unregister_hook(detector)
