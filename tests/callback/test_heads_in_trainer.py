"""Heads in a Trainer: nothing changes that nobody changed, each pass counts once, and an edit is that of the slice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    ActivationStatistics,
    GradientStatistics,
    HookCallback,
    LayerActivationDetector,
    Schedule,
    SteeringController,
)
from tests.callback.compiled.cases import QUIET, Counted, in_place, small_llama
from tests.callback.runs import Trace, assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, run
from tests.metrics.noted import Noted
from tests.models import token_data, trainer

ALWAYS, HEADS, WIDTH = Schedule(), "block:*.attn.head:*", 8


def trained(kind: str, *hooks: Any, checkpointing: bool = False) -> tuple[Any, HookCallback]:
    """What is left of a fit of five steps from a fixed start."""
    module, trace = module_of(kind), Trace()
    if checkpointing:
        checkpointed(module)
    watch = HookCallback([one for one in hooks if one.observes], [one for one in hooks if one.edits])
    torch.manual_seed(7)
    runner = fit(module, data_of(kind), watch, trace)
    return {**fingerprint(module, runner), "losses": trace.losses, "states": trace.states}, watch


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit"])
def test_a_watched_fit_is_bit_identical(kind: str) -> None:
    hooks = [
        ActivationStatistics(HEADS, schedule=ALWAYS),
        LayerActivationDetector(HEADS, name="held"),
        GradientStatistics(HEADS, schedule=ALWAYS),
    ]
    bare, _ = trained(kind)
    seen, watch = trained(kind, *hooks)
    assert_bit_equal(bare, seen)
    layers = {row.layer for row in watch.history() if row.name == "rms"}
    assert len(layers) == 16 and all(layer.rpartition(".")[2].startswith("head:") for layer in layers)


def test_a_recompute_is_not_counted_and_an_edit_is_made_again() -> None:
    def outcome(checkpointing: bool) -> tuple[Any, Any]:
        detector = Noted(HEADS)
        steer = SteeringController("block:*.attn.head:1", torch.ones(WIDTH), schedule=ALWAYS)
        left, _ = trained("llama", detector, steer, checkpointing=checkpointing)
        return detector.noted, left

    (noted, left), (expected, other) = outcome(True), outcome(False)
    assert noted == expected and len(noted) == 5
    assert_bit_equal(left, other)


def test_gradients_under_checkpointing_are_those_without() -> None:
    def readings(checkpointing: bool) -> list[Any]:
        detector = GradientStatistics(HEADS, schedule=ALWAYS, statistics=["rms", "max"], histogram=False)
        _, watch = trained("llama", detector, checkpointing=checkpointing)
        return [(row.step, row.layer, row.name, row.value) for row in watch.history()]

    assert readings(True) == readings(False) != []


def steered_by_hand(model: Any) -> None:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[..., WIDTH : 2 * WIDTH] += 1.0
        return (x,)

    for block in model.model.layers:
        block.self_attn.o_proj.register_forward_pre_hook(hook)


def test_training_with_a_steered_head_is_training_with_the_slice_steered() -> None:
    steer = SteeringController("block:*.attn.head:1", torch.ones(WIDTH), schedule=ALWAYS)
    data = [{"input_ids": row["input_ids"].clamp_min(3)} for row in token_data()]  # without padding
    fits = []
    for hooks, by_hand in (([steer], None), ([], steered_by_hand)):
        module = module_of("llama")
        if by_hand is not None:
            by_hand(module.model)
        torch.manual_seed(7)
        runner = fit(module, data, HookCallback(controllers=hooks))
        fits.append(fingerprint(module, runner))
    assert_bit_equal(*fits)


def test_only_generated_tokens_are_steered_in_decode_steps() -> None:
    vector, made, given = torch.ones(WIDTH), list[Tensor](), list[Tensor]()
    module = module_of("llama")
    module.model.generation_config.eos_token_id = None
    projection = module.model.model.layers[1].self_attn.o_proj
    detector = LayerActivationDetector("block:1.attn.head:2", schedule=ALWAYS, before_edits=True)
    steer = SteeringController("block:1.attn.head:2", vector, strength=3.0, tokens="generated")
    watch = HookCallback(detector, steer)
    projection.register_forward_pre_hook(lambda module, args: made.append(args[0].clone()))
    linear = projection.forward

    def forward(x: Tensor) -> Tensor:
        given.append(x.clone())
        return linear(x)

    projection.forward = forward
    run("predict", trainer(watch), module, token_data(4))
    assert [x.shape[1] for x in made] == [7, 1, 1, 1, 1]
    for i, (was, now) in enumerate(zip(made, given, strict=True)):
        expected = was.clone()
        columns = slice(-1, None)  # the prompt's last token makes the first generated one
        expected[:, columns, 2 * WIDTH : 3 * WIDTH] += 3.0 * vector
        assert torch.equal(now, expected), i
    assert {(effect.layer, effect.fired) for effect in watch.effects()} == {
        ("model.model.layers.1.self_attn.head:2", 5)
    }


@pytest.mark.documents("compatibility/single-attention-heads/logging")
def test_tags_name_the_heads() -> None:
    detector = ActivationStatistics("block:1.attn.head:2-3", statistics=["rms"], histogram=False, schedule=ALWAYS)
    _, watch = trained("llama", detector)
    names = (f"model.model.layers.1.self_attn.head:{head}" for head in (2, 3))
    assert {row.tag for row in watch.history()} == {f"activations_rms/{name}" for name in names}


@QUIET
def test_in_a_compiled_model_heads_are_read_and_steered() -> None:
    seen, outputs = [], []
    for compiled in (False, True):
        torch._dynamo.reset()
        counted, module = Counted("eager"), small_llama()
        watch = HookCallback(
            [
                ActivationStatistics("block:1.attn.head:2-3", schedule=ALWAYS, statistics=["mean", "rms", "max"]),
                LayerActivationDetector("block:1.attn.head:0", schedule=ALWAYS, name="held"),
            ],
            [SteeringController("block:0.attn.head:1", torch.ones(WIDTH), strength=2.0, schedule=ALWAYS)],
        )
        fit(in_place(module, counted.backend) if compiled else module, token_data(8), watch)
        seen.append({(row.step, row.tag): row.value for row in watch.history()})
        outputs.append(torch.cat([weight.detach().flatten() for weight in module.parameters()]))
        if compiled:
            assert counted.breaks == 0 and counted.graphs > 0
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert seen[0].keys() == seen[1].keys() != set()
    for key, value in seen[0].items():
        assert seen[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_a_configuration_names_heads() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    reader = jsonargparse.ArgumentParser(exit_on_error=False)
    reader.add_argument("--callback", type=HookCallback)
    text = """
        callback:
          class_path: mi_crow_lightning.HookCallback
          init_args:
            detectors:
              - class_path: mi_crow_lightning.ActivationStatistics
                init_args: {layer_signature: "block:1.attn.head:*", statistics: [rms], histogram: false}
            controllers:
              - class_path: mi_crow_lightning.ScaleController
                init_args: {layer_signature: ["block:0.attn.head:0", "block:1.attn.head:-1"], factor: 0.0}
    """
    watch = reader.instantiate(reader.parse_string(text)).callback
    module = module_of("llama")
    run("predict", trainer(watch), module, token_data(4))
    assert {effect.layer.rpartition(".")[2] for effect in watch.effects()} == {"head:0", "head:3"}


def test_the_report_lists_heads_after_their_projection() -> None:
    hooks = [ActivationStatistics("block:*.attn.head:1-2"), ActivationStatistics("block:*", name="blocks")]
    watch = HookCallback(hooks)
    fit(module_of("llama"), data_of("llama"), watch)
    rows = [
        (row.name.removeprefix("model.model.layers."), row.module, row.output_shape) for row in watch.report().layers
    ]
    assert rows[:4] == [
        ("0", "LlamaDecoderLayer", None),
        ("0.self_attn.head:1", "head", "(..., 8)"),
        ("0.self_attn.head:2", "head", "(..., 8)"),
        ("1", "LlamaDecoderLayer", None),
    ]
