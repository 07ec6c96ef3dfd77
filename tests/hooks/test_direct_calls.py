"""Hooks that are called directly, on no model and in no Trainer, as in a unit test of one's own hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    Controller,
    Detector,
    FunctionController,
    Hook,
    HookContext,
    LayerActivationDetector,
    Layers,
    ProjectionDetector,
    ScaleController,
    SteeringController,
    SummingDetector,
)
from mi_crow_lightning.errors import NoTensorFound

LAYER = nn.Linear(4, 4)


def activation() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Square(SummingDetector):
    names, sums = ("square",), 1

    def measure(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> Any:
        return [x.square().sum()]

    def values(self, sums: Tensor) -> dict[str, float]:
        return {"square": sums[0].item()}


def read(detector: Detector) -> dict[str, Any]:
    return {reading.name: reading.value for reading in detector.readings()}


def test_a_detector_captures() -> None:
    x, detector = activation(), LayerActivationDetector("block:1")
    detector.process_activations(LAYER, (x,), (x, "cache"))
    assert torch.equal(detector.get_captured(), x)
    detector.process_activations(LAYER, (x,), x + 1)
    assert torch.equal(detector.get_captured(), x + 1)
    with pytest.raises(NoTensorFound):
        detector.process_activations(LAYER, (x,), "no tensor")


@pytest.mark.parametrize("signature", [None, 3, "block:*"])
def test_statistics_add_up_over_calls(signature: Any) -> None:
    x = activation()
    statistics = ActivationStatistics(signature, statistics=["mean"], histogram=False)
    square, projection = Square(signature), ProjectionDetector(signature, torch.ones(4))
    for detector in (statistics, square, projection):
        detector.process_activations(LAYER, (x,), x)
        detector.process_activations(LAYER, (x,), 3 * x)
    assert read(statistics)["mean"] == pytest.approx(2 * x.mean().item())
    assert read(square)["square"] == pytest.approx(10 * x.square().sum().item())
    assert read(projection)["mean"] == pytest.approx(2 * (x.sum(-1) / 2).mean().item(), abs=1e-6)


UNIT = torch.tensor([1.0, 0.0, 0.0, 0.0])
EDITS: dict[str, tuple[Controller, Any]] = {
    "steering": (SteeringController("block:1", UNIT, 2.0), lambda x: x + 2 * UNIT),
    "by layer": (SteeringController(3, {3: UNIT}, 2.0), lambda x: x + 2 * UNIT),
    "the last token": (
        SteeringController(None, UNIT, 2.0, tokens="last"),
        lambda x: torch.cat([x[:, :-1], x[:, -1:] + 2 * UNIT], 1),
    ),
    "ablation": (AblationController("h.1", UNIT), lambda x: x * (1 - UNIT)),
    "clamp": (ClampController("h.1", UNIT, 0.5), lambda x: x * (1 - UNIT) + 0.5 * UNIT),
    "scale": (ScaleController("h.1", factor=2), lambda x: 2 * x),
    "function": (FunctionController("h.1", torch.tanh), torch.tanh),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_controller_edits(case: str) -> None:
    (controller, wanted), x = EDITS[case], activation()
    edited = controller.modify_activations(LAYER, x, x)
    assert edited is not None and torch.allclose(edited, wanted(x))
    assert controller._hook_fn(LAYER, (x,), (x, "cache"))[1] == "cache"
    assert controller.modify_activations(LAYER, None, None) is None


def test_before_a_layer_the_input_is_edited() -> None:
    x, controller = activation(), ScaleController("h.1", factor=2, hook_type="pre_forward")
    edited = controller.modify_activations(LAYER, x, None)
    assert edited is not None and torch.equal(edited, 2 * x)
    (args, _) = controller._hook_fn(LAYER, (x,))
    assert torch.equal(args[0], 2 * x)


class Notes(Detector, Controller):
    context_seen: HookContext

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        self.context_seen = ctx

    def edit(self, x: Tensor, ctx: HookContext) -> Tensor:
        return -x


def test_the_context_knows_the_layer_alone() -> None:
    x, hook = activation(), Notes(2)
    assert torch.equal(hook._hook_fn(LAYER, (x,), x), -x)
    ctx = hook.context_seen
    assert (ctx.layer, ctx.index, ctx.model, ctx.hooks) == ("2", 2, LAYER, [hook])
    assert ctx.args[0] is x and ctx.output is x and ctx.kwargs == {}
    assert (ctx.moment, ctx.stage, ctx.batch, ctx.step, ctx.language_model, ctx.store) == (None,) * 6
    assert "layer='2'" in repr(ctx) and hook.context is None and not hook.registered


class InItsOwnHookFunction(Detector):
    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> None:
        self.process_activation(output)

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        self.seen = x


def test_the_short_form_in_a_hook_function_of_ones_own() -> None:
    x, hook = activation(), InItsOwnHookFunction("h.1")
    hook._hook_fn(LAYER, (x,), x)
    assert torch.equal(hook.seen, x)


def test_a_hook_is_prepared_again_for_a_model_and_after_it() -> None:
    x, model = activation(), nn.Sequential(nn.Identity(), nn.Identity())
    detector = ActivationStatistics("0", statistics=["mean"], histogram=False)
    detector.process_activations(LAYER, (x,), x)
    layers = Layers(model)
    layers.register_hook("1", detector)
    model(x + 1)
    assert read(detector)["mean"] == pytest.approx(x.mean().item() + 1)
    layers.unregister_hook(detector)
    detector.process_activations(LAYER, (x,), x + 2)
    assert read(detector)["mean"] == pytest.approx(x.mean().item() + 2)


def test_a_plain_hook_needs_no_context() -> None:
    assert type("Mine", (Hook,), {})("h.1")._hook_fn(LAYER, (activation(),), activation()) is None
