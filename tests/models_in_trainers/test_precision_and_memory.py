"""Precisions, gradient checkpointing, offloading, accumulation and clipping: what they add to watching and steering."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    Schedule,
    SteeringController,
)
from tests.callback.runs import assert_bit_equal
from tests.metrics.noted import Noted
from tests.models import WIDTH, llama, loader, token_data, trainer
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched, attention_mask, fitted

LAYERS = ["model.model.layers.0", "model.model.layers.2", "model.model.layers.2.mlp", "model.lm_head"]
PLACE = "model.model.layers.1"
VECTOR = torch.linspace(-1, 1, WIDTH)


def module_of(model: nn.Module | None = None) -> Runs:
    return Runs(
        model if model is not None else llama(use_cache=False),
        lambda m, batch: m(**batch, labels=batch["input_ids"]).loss,
        lambda m, batch: m(**batch).logits,
    )


def float16() -> dict[str, Any]:
    # Lightning makes "16-mixed" bfloat16 on a CPU, unless it is given the plugin itself.
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]}


PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: lambda name=name: {"precision": name} for name in ("bf16-mixed", "bf16-true", "64-true", "16-true")},
    "16-mixed": float16,
}


# float16 with a scaler, and alone, which AdamW overflows: tests/metrics/one_pass/test_float16.py
@pytest.mark.documents("compatibility/bf16-mixed-bf16-true-64-true/detectors")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_fit_is_watched_exactly(precision: str) -> None:
    assert_watched(module_of, token_data(10), LAYERS, attention_mask, **PRECISIONS[precision]())


@pytest.mark.documents(
    "compatibility/bf16-mixed-bf16-true-64-true/controllers", "compatibility/16-mixed-16-true/controllers"
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_predictions_are_steered_exactly(precision: str) -> None:
    assert_steered(module_of, token_data(8), PLACE, mask_of=attention_mask, **PRECISIONS[precision]())


def steered(by_hand: bool, wrap: Any = None, data: Any = None, **options: Any) -> dict[str, Any]:
    """A fit with a vector added at a block: by a controller, or by a plain hook; a fit's losses and weights.

    Every token is real here, and the hook is on the block itself.
    """

    def make() -> Runs:
        module = module_of()
        if wrap is not None:
            wrap(module)
        if by_hand:
            block = module.model.model.layers[1]  # type: ignore[union-attr,index]

            def add(m: nn.Module, args: Any, output: Any) -> Any:
                x = output if isinstance(output, Tensor) else output[0]
                # As the controller does it: float32, rounded once.
                new = x + (2.0 * VECTOR.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
                return new if isinstance(output, Tensor) else (new, *output[1:])

            block.mlp.register_forward_hook(add)
        return module

    controller = SteeringController(f"{PLACE}.mlp", VECTOR, strength=2.0, schedule=Schedule())
    rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in token_data(10)]
    return fitted(make, rows, *([] if by_hand else [HookCallback(controllers=controller)]), **options)[0]


@pytest.mark.documents("compatibility/bf16-mixed-bf16-true-64-true/controllers")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "16-mixed"])
def test_a_steered_fit_is_that_of_a_plain_hook(precision: str) -> None:
    options = PRECISIONS[precision]
    assert_bit_equal(steered(True, **options()), steered(False, **options()))


@pytest.mark.documents("compatibility/gradient-accumulation/controllers", "compatibility/gradient-clipping/controllers")
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    ],
    ids=["accumulation", "clip-norm", "clip-value", "all"],
)
def test_accumulated_and_clipped_gradients_are_those_of_a_plain_hook(options: dict[str, Any]) -> None:
    one = steered(False, **options)
    assert_bit_equal(steered(True, **options), one)
    with pytest.raises(AssertionError):  # the option does change the fit
        assert_bit_equal(steered(False)["weights"], one["weights"])


@pytest.mark.documents("compatibility/gradient-clipping/detectors")
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_watched_exactly(algorithm: str) -> None:
    options = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    assert_watched(module_of, token_data(10), LAYERS, attention_mask, **options)


# Less memory for activations: they are computed again, or kept elsewhere.


def checkpointed(reentrant: bool) -> Callable[[Runs], None]:
    def wrap(module: Runs) -> None:
        model: Any = module.model
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()

    return wrap


def each_block(wrapper: Any) -> Callable[[Runs], None]:
    def wrap(module: Runs) -> None:
        layers: Any = module.model.model.layers  # type: ignore[union-attr]
        for index, block in enumerate(layers):
            layers[index] = wrapper(block)

    return wrap


def saved_on_cpu(module: Runs) -> None:
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]


LESS: dict[str, Callable[[Runs], None]] = {
    "reentrant": checkpointed(True),
    "not-reentrant": checkpointed(False),
    "wrapped-blocks": each_block(checkpoint_wrapper),
    "offloaded-blocks": each_block(offload_wrapper),
    "saved-on-cpu": saved_on_cpu,
}


def wrapped(less: str) -> Callable[[], Runs]:
    def make() -> Runs:
        module = module_of()
        LESS[less](module)
        return module

    return make


@pytest.mark.documents("compatibility/gradient-checkpointing-activation-offload-save-on-cpu/detectors")
@pytest.mark.parametrize("less", LESS)
def test_with_less_memory_a_fit_is_watched_bit_identically_and_counted_once(less: str) -> None:
    def readings(make: Callable[[], Runs]) -> tuple[list[Any], dict[str, Any]]:
        detectors = [Noted(layer) for layer in ("block:*", "block:*.mlp", "block:*.attn")]
        left, _ = fitted(make, token_data(10), HookCallback(detectors))
        return [detector.noted for detector in detectors], left

    bare, _ = fitted(wrapped(less), token_data(10))
    counted, watched = readings(wrapped(less))
    assert_bit_equal(bare, watched)
    assert counted == readings(module_of)[0]


@pytest.mark.documents("compatibility/gradient-checkpointing-activation-offload-save-on-cpu/controllers")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("less", LESS)
def test_with_less_memory_a_steered_fit_has_the_same_gradients(less: str, precision: str) -> None:
    plain = steered(False, precision=precision)
    assert_bit_equal(plain, steered(False, LESS[less], precision=precision))
    assert_bit_equal(plain, steered(True, precision=precision))


@pytest.mark.parametrize("less", ["reentrant", "not-reentrant"])
def test_tokens_and_strengths_by_sample_are_repeated_in_the_recompute(less: str) -> None:
    def weights(make: Callable[[], Runs]) -> dict[str, Any]:
        options: dict[str, Any] = dict(tokens="last", schedule=Schedule())
        controllers = [
            SteeringController("block:1.attn", VECTOR, strength=lambda ctx: float(ctx.batch_idx), **options),
            FunctionController("block:2.mlp", torch.tanh, when=lambda x, ctx: x[..., 0] > 0, schedule=Schedule()),
        ]
        return fitted(make, token_data(8), HookCallback(controllers=controllers))[0]

    assert_bit_equal(weights(module_of), weights(wrapped(less)))
    with pytest.raises(AssertionError):
        assert_bit_equal(weights(module_of), fitted(module_of, token_data(8))[0])


# Evaluation with and without torch's inference mode.


@pytest.mark.documents("compatibility/inference-mode-false/detectors", "compatibility/inference-mode-false/controllers")
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_without_inference_mode_the_same_is_read_and_edited(stage: str, inference: bool) -> None:
    module, seen = module_of(), list[bool]()
    module.model.model.layers[1].register_forward_hook(lambda m, a, y: seen.append(torch.is_inference_mode_enabled()))  # type: ignore[union-attr,index]
    statistics, held = ActivationStatistics(PLACE, schedule=Schedule()), LayerActivationDetector(PLACE, name="held")
    steer = SteeringController("block:0", VECTOR, schedule=Schedule())
    runner = trainer(HookCallback([statistics, held], steer), inference_mode=inference)
    options = {"verbose": False} if stage == "validate" else {}
    result = getattr(runner, stage)(module, loader(token_data(8)), **options)
    assert set(seen) == {inference}
    other = trainer(HookCallback([], SteeringController("block:0", VECTOR, schedule=Schedule())))
    assert_bit_equal(result, getattr(other, stage)(module_of(), loader(token_data(8)), **options))
    kept = held.get_captured()
    assert not kept.is_inference() and not kept.requires_grad
    weight = nn.Parameter(torch.ones(WIDTH))  # usable in autograd
    (kept * weight).sum().backward()
    assert torch.isfinite(weight.grad).all() and weight.grad.abs().sum() > 0


def test_grad_may_be_asked_for_in_predict_without_inference_mode() -> None:
    """As for saliency: gradients flow through the edit, and the detector does not hold on to them."""
    grads: list[Tensor] = []

    def predict(model: Any, batch: Any) -> Tensor:
        with torch.enable_grad():
            loss = model(**batch, labels=batch["input_ids"]).loss
            (grad,) = torch.autograd.grad(loss, model.model.embed_tokens.weight)
        grads.append(grad)
        out: Tensor = loss.detach()
        return out

    for callback in (nullcontext(), HookCallback(ActivationStatistics("block:*", schedule=Schedule()))):
        module = Runs(llama(use_cache=False), lambda m, b: m(**b).loss, predict)
        callbacks = [callback] if isinstance(callback, HookCallback) else []
        trainer(*callbacks, inference_mode=False).predict(module, loader(token_data(4)))
    assert torch.equal(grads[0], grads[1]) and grads[0].abs().sum() > 0
