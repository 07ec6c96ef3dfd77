"""Tiny transformers, what their blocks make and pass on, and each edit computed by numpy in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import (
    AblationController,
    ClampController,
    Controller,
    FunctionController,
    Layers,
    PatchController,
    ScaleController,
    SteeringController,
)
from tests.models import VOCABULARY, WIDTH, bert, gpt2, llama, token_data

BATCH: dict[str, Tensor] = default_collate(token_data(3))
REAL = BATCH["attention_mask"].bool()  # (3, 7)


def mistral() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    tokens = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=4, **sizes, **tokens))


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, d_ff=48, d_kv=8, num_layers=4, num_heads=4)
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes))


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    blocks: str  # the stack's name
    call: dict[str, Tensor]


_DECODER = {"decoder_input_ids": BATCH["input_ids"], "decoder_attention_mask": BATCH["attention_mask"]}
_ENCODER = {"input_ids": torch.full((3, 5), 7), "attention_mask": torch.ones(3, 5, dtype=torch.long)}

MODELS: dict[str, Case] = {
    "llama": Case(llama, "model.layers", BATCH),
    "gpt2": Case(gpt2, "transformer.h", BATCH),
    "mistral": Case(mistral, "model.layers", BATCH),
    "bert": Case(bert, "bert.encoder.layer", BATCH),
    "t5 encoder": Case(t5, "encoder.block", {**BATCH, "decoder_input_ids": torch.full((3, 5), 7)}),
    "t5 decoder": Case(t5, "decoder.block", {**_ENCODER, **_DECODER}),
}


def vectors(count: int, seed: int = 4) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


class Seen(NamedTuple):
    made: list[Tensor]  # by each block, before ours
    passed_on: list[Tensor]  # to the next one


def run(model: nn.Module, blocks: str, call: dict[str, Any], *controllers: Controller) -> Seen:
    """One pass without gradients, with hooks of the test's own before and after ours."""
    seen = Seen([], [])
    layers = Layers(model, allow_stacking=True)
    before = [_record(block, seen.made) for block in model.get_submodule(blocks)]  # type: ignore[union-attr]
    for controller in controllers:
        layers.register_hook(None, controller)
    after = [_record(block, seen.passed_on) for block in model.get_submodule(blocks)]  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            model(**call)
    finally:
        layers.unregister_all_hooks()
        for handle in (*before, *after):
            handle.remove()
    return seen


def _record(block: nn.Module, into: list[Tensor]) -> Any:
    return block.register_forward_hook(lambda module, args, output: into.append(first(output).detach().clone()))


Reference = Callable[[np.ndarray], np.ndarray]
"""From activations (B, T, D) in float64 to the edited ones."""

VECTOR = vectors(1)[0]
SPACE = vectors(3, seed=6)
STORED = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(8))
_U = (VECTOR.double() / VECTOR.double().norm()).numpy()
_Q = np.linalg.qr(SPACE.double().numpy().T)[0]  # (D, 3), another way than ours to an orthonormal basis


def _towards(target: Reference, share: float = 1.0) -> Reference:
    return lambda x: x + share * (target(x @ _U) - x @ _U)[..., None] * _U


EDITS: dict[str, tuple[Callable[..., Controller], Reference]] = {
    "steer": (lambda at, **o: SteeringController(at, VECTOR, -1.5, **o), lambda x: x - 1.5 * VECTOR.double().numpy()),
    "ablate a direction": (lambda at, **o: AblationController(at, 4 * VECTOR, **o), _towards(lambda p: 0 * p)),
    "ablate a share": (
        lambda at, **o: AblationController(at, VECTOR, strength=0.25, **o),
        _towards(lambda p: 0 * p, 0.25),
    ),
    "ablate a subspace": (lambda at, **o: AblationController(at, SPACE, **o), lambda x: x - x @ _Q @ _Q.T),
    "clamp to a value": (lambda at, **o: ClampController(at, 2 * VECTOR, 0.5, **o), _towards(lambda p: 0 * p + 0.5)),
    "clamp some of the way": (
        lambda at, **o: ClampController(at, VECTOR, -1, strength=0.5, **o),
        _towards(lambda p: 0 * p - 1, 0.5),
    ),
    "clip": (
        lambda at, **o: ClampController(at, VECTOR, low=-0.005, high=0.01, **o),
        _towards(lambda p: np.clip(p, -0.005, 0.01)),
    ),
    "clip from above": (
        lambda at, **o: ClampController(at, VECTOR, high=0.0, **o),
        _towards(lambda p: np.minimum(p, 0)),
    ),
    "scale": (lambda at, **o: ScaleController(at, -2.5, **o), lambda x: -2.5 * x),
    "scale half": (lambda at, **o: ScaleController(at, 3, strength=0.5, **o), lambda x: 2 * x),
    "patch": (lambda at, **o: PatchController(at, STORED, **o), lambda x: STORED.double().numpy() + 0 * x),
    "patch a mean": (lambda at, **o: PatchController(at, VECTOR, **o), lambda x: VECTOR.double().numpy() + 0 * x),
    "function": (lambda at, **o: FunctionController(at, torch.tanh, **o), np.tanh),
    "some of a function": (
        lambda at, **o: FunctionController(at, torch.tanh, strength=0.3, **o),
        lambda x: x + 0.3 * (np.tanh(x) - x),
    ),
}


@contextmanager
def original(error: type[Exception], message: str) -> Iterator[None]:
    """The pass raises a `HookError` around this one."""
    with pytest.raises(HookError) as caught:
        yield
    with pytest.raises(error, match=message):
        raise caught.value.original_error
