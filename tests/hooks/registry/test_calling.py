"""What a hook is given, and what its return value replaces: after a layer, before it, and both in one object."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import EditMismatch, HookError, NoTensorFound
from mi_crow_lightning.hooks import Controller, Detector, FunctionController, Hook, LayerActivationDetector, Layers
from tests.models import llama

IDS = torch.tensor([[3, 4, 5, 6]])


class Call(Hook):
    """Returns what a function makes of the layer's call."""

    def __init__(self, function: Any, hook_type: str = "pre_forward") -> None:
        super().__init__(hook_type=hook_type)
        self.function = function

    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> Any:
        ctx = self.context
        assert ctx is not None and ctx.args is input
        return self.function(input, ctx.kwargs) if output is None else self.function(output)


class Weighted(nn.Module):
    def forward(self, x: Tensor, weight: float = 1.0, *, shift: Tensor | None = None) -> tuple[Tensor, str]:
        y = x * weight
        return (y if shift is None else y + shift), "rest"


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Weighted()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, str]:
        result: tuple[Tensor, str] = self.layer(*args, **kwargs)
        return result


ONES = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda args, kwargs: None, 1.0),
        (lambda args, kwargs: args[0] * 5, 5.0),
        (lambda args, kwargs: (args[0] * 5, 2.0), 10.0),
        (lambda args, kwargs: [args[0] * 5], 5.0),
        (lambda args, kwargs: ((args[0], 3.0), {"shift": ONES}), 4.0),
        (lambda args, kwargs: ((), {"x": args[0] * 7, **kwargs}), 7.0),
    ],
)
def test_before_a_layer_the_inputs_are_replaced(function: Any, expected: float) -> None:
    model, hook = Host(), Call(function)
    Layers(model).register_hook("layer", hook)
    y, rest = model(ONES)
    assert torch.equal(y, ONES * expected) and rest == "rest"


def test_keyword_inputs_stay_when_positional_ones_are_replaced() -> None:
    model = Host()
    Layers(model).register_hook("layer", Call(lambda args, kwargs: (args[0] * 5,)))
    assert torch.equal(model(ONES, weight=2.0, shift=ONES)[0], ONES * 11)


def test_a_tensor_replaces_the_activation_among_keyword_inputs() -> None:
    model = Host()
    Layers(model).register_hook("layer", Call(lambda args, kwargs: kwargs["x"] * 5))
    assert torch.equal(model(x=ONES, weight=2.0)[0], ONES * 10)


def test_what_cannot_replace_inputs_is_refused() -> None:
    model = Host()
    Layers(model).register_hook("layer", Call(lambda args, kwargs: "text"))
    with pytest.raises(
        HookError, match="pre_forward hook returned a str: return a tensor, a tuple of positional inputs"
    ):
        model(ONES)


def test_after_a_layer_what_is_returned_replaces_the_output() -> None:
    model = Host()
    Layers(model).register_hook("layer", Call(lambda output: (output[0] + 1, "new"), "forward"))
    y, rest = model(ONES)
    assert torch.equal(y, ONES * 2) and rest == "new"


def test_a_controller_replaces_only_the_activation_in_a_tuple() -> None:
    model = Host()
    Layers(model).register_hook("layer", FunctionController(None, lambda x: x * 2))
    y, rest = model(ONES)
    assert torch.equal(y, ONES * 2) and rest == "rest"


def test_attention_that_is_called_by_keyword() -> None:
    """llama gives its attention ``hidden_states=...``, and takes a tuple from it."""
    model = llama().eval()
    bare = model(IDS).logits
    attention = model.model.layers[1].self_attn
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        kept = attention.register_forward_hook(
            lambda module, args, kwargs, output: seen.update(given=kwargs["hidden_states"], made=output[0]),
            with_kwargs=True,
        )
        zero = attention.register_forward_hook(lambda module, args, output: (torch.zeros_like(output[0]), *output[1:]))
        without = model(IDS).logits
    zero.remove(), kept.remove()
    layers = Layers(model, allow_stacking=True)
    before, after = LayerActivationDetector(hook_type="pre_forward"), LayerActivationDetector()
    for detector in (before, after):
        layers.register_hook("block:1.attn", detector)
    assert torch.equal(model(IDS).logits, bare)
    assert torch.equal(before.get_captured(), seen["given"]) and torch.equal(after.get_captured(), seen["made"])
    after_edit = FunctionController(None, torch.zeros_like)
    layers.register_hook("block:1.attn", after_edit)
    assert torch.equal(model(IDS).logits, without)
    layers.unregister_hook(after_edit)
    # Nothing in gives nothing out: this attention has no bias.
    layers.register_hook("block:1.attn", FunctionController(None, torch.zeros_like, "pre_forward"))
    assert torch.equal(model(IDS).logits, without)


def observe(self: Any, x: Tensor, ctx: Any) -> None:
    self.tensor_metadata["seen"] = x.clone()


def edit(self: Any, x: Tensor, ctx: Any) -> Tensor:
    assert torch.equal(self.tensor_metadata["seen"], x)
    return x * 3


@pytest.mark.parametrize("bases", [(Detector, Controller), (Controller, Detector)])
@pytest.mark.parametrize("hook_type", ["forward", "pre_forward"])
def test_an_object_that_is_both_observes_then_edits(bases: tuple[type, ...], hook_type: str) -> None:
    both = type("Both", bases, {"observe": observe, "edit": edit})(hook_type=hook_type, hook_id="both")
    assert both.observes and both.edits and both.id == "both"
    model, after = Host(), LayerActivationDetector(hook_type=hook_type)
    layers = Layers(model)
    layers.register_hook("layer", both)
    layers.register_hook("layer", after)
    assert torch.equal(model(ONES)[0], ONES * 3)
    assert torch.equal(both.tensor_metadata["seen"], ONES)
    assert torch.equal(after.get_captured(), ONES * 3)


def test_gradients_through_an_edit_are_those_of_an_edited_model() -> None:
    """The reference writes the edit into the block's forward; the hook must give the same, to the bit."""

    class Edited(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return torch.tanh(self.block(*args, **kwargs)) * 2

    model, reference = llama().eval(), llama().eval()
    Layers(model).register_hook("block:1", FunctionController(None, lambda x: torch.tanh(x) * 2))
    reference.model.layers[1] = Edited(reference.model.layers[1])
    for each in (model, reference):
        each(IDS, labels=IDS).loss.backward()
    pairs = list(zip(model.parameters(), reference.parameters(), strict=True))
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)
    assert any(parameter.grad.any() for parameter in model.model.layers[0].parameters())


class Identity(Controller):
    def edit(self, x: Tensor, ctx: Any) -> Tensor | None:
        return None if ctx.index else x


def test_nothing_returned_leaves_the_very_same_output() -> None:
    model = llama().eval()
    layers, outputs = Layers(model), []
    bare = model(IDS).logits
    for block in model.model.layers:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    layers.register_hook("block:*", Identity())
    after = model(IDS).logits
    assert torch.equal(after, bare) and len(outputs) == 4


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, :-1], r"a controller must keep the shape: it was given \(1, 4, 32\) and returned \(1, 3, 32\)"),
        (lambda x: x.double(), "keep the dtype: it was given torch.float32 and returned torch.float64"),
        (lambda x: x.to("meta"), "keep the device: it was given cpu and returned meta"),
        (lambda x: 3.0, "a controller must return a tensor or None, not a float"),
    ],
)
@pytest.mark.parametrize("hook_type", ["forward", "pre_forward"])
def test_an_edit_of_another_form_is_refused(function: Any, message: str, hook_type: str) -> None:
    class Wrong(Controller):
        def edit(self, x: Tensor, ctx: Any) -> Any:
            return function(x)

    model = llama().eval()
    bare = model(IDS).logits
    Layers(model).register_hook("block:2", Wrong(hook_type))
    with pytest.raises(
        HookError, match=r"failed at layer 'model.layers.2'; activation of shape \(1, 4, 32\)"
    ) as caught:
        model(IDS)
    assert isinstance(caught.value.original_error, EditMismatch)
    with pytest.raises(EditMismatch, match=message):
        raise caught.value.original_error
    assert torch.equal(caught.value.outputs.logits, bare)


def test_a_detector_may_not_return_anything() -> None:
    class Meddler(Detector):
        def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
            return output[0]

    model = Host()
    Layers(model).register_hook("layer", Meddler())
    with pytest.raises(HookError, match="Meddler is a detector, but its _hook_fn returned a Tensor: detectors only"):
        model(ONES)


def test_a_layer_without_a_tensor() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "text"

    model = nn.Sequential(Text())
    Layers(model).register_hook("0", LayerActivationDetector())
    with pytest.raises(HookError, match="holds no tensor: it is an empty or opaque str") as caught:
        model(ONES)
    assert isinstance(caught.value.original_error, NoTensorFound) and caught.value.outputs == "text"


def test_the_older_extension_points() -> None:
    class Old(Detector):
        def process_activations(self, module: nn.Module, input: Any, output: Any) -> None:
            self.metadata["calls"] = (type(module).__name__, len(input), output[1])

    class OldEdit(Controller):
        def modify_activations(self, module: nn.Module, inputs: Tensor | None, output: Tensor | None) -> Tensor | None:
            assert inputs is not None and output is not None
            return output + inputs

    model, old = Host(), Old()
    layers = Layers(model)
    layers.register_hook("layer", old)
    layers.register_hook("layer", OldEdit())
    assert torch.equal(model(ONES)[0], ONES * 2)
    assert old.metadata["calls"] == ("Weighted", 1, "rest")
