"""The widths that layers declare: never another than the one that a pass shows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
)

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import Match
from mi_crow_lightning.addressing.widths import declared_width
from tests.models import WIDTH, bert, gpt2, llama, mlp, vit

SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)
HEADS: dict[str, Any] = dict(num_key_value_heads=2, head_dim=16)
IDS = dict(input_ids=torch.arange(3, 11).reshape(2, 4))


def swin() -> nn.Module:
    return SwinModel(
        SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 4], window_size=4)
    )


def convnext() -> nn.Module:
    return ConvNextModel(ConvNextConfig(image_size=32, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]))


def t5() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=4, num_layers=2, num_heads=4))


def lora() -> nn.Module:
    model = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
        return get_peft_model(model, LoraConfig(target_modules=["up_proj", "q_proj"], r=2))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "llama": (llama, IDS),
    "gpt2": (gpt2, IDS),
    "bert": (bert, IDS),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS)), IDS),
    "gemma3": (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS)), IDS),
    "mixtral": (lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2)), IDS),
    "t5": (t5, {**IDS, "decoder_input_ids": IDS["input_ids"]}),
    "vit": (vit, dict(pixel_values=torch.zeros(2, 3, 16, 16))),
    "swin": (swin, dict(pixel_values=torch.zeros(2, 3, 32, 32))),
    "convnext": (convnext, dict(pixel_values=torch.zeros(2, 3, 32, 32))),
    "lora": (lora, IDS),
    "mlp": (mlp, {}),
}


@contextmanager
def shown(model: nn.Module) -> Iterator[dict[nn.Module, tuple[int | None, int | None]]]:
    """The sizes of the channels of each module's first input and output, by plain hooks of torch."""
    widths: dict[nn.Module, tuple[int | None, int | None]] = {}

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        made = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else None
        widths[module] = (_size(given, module), _size(made, module))

    kept = [module.register_forward_hook(look, with_kwargs=True) for module in model.modules()]
    yield widths
    for handle in kept:
        handle.remove()


def _size(x: Any, module: nn.Module) -> int | None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
        return None
    return x.shape[1 if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) else -1]


@pytest.mark.parametrize("kind", MODELS)
def test_a_declared_width_is_the_one_that_a_pass_shows(kind: str) -> None:
    make, inputs = MODELS[kind]
    model = make().eval()
    with torch.no_grad(), shown(model) as widths:
        model(**inputs) if inputs else model(torch.zeros(2, 8))
    tree, checked = ModuleTree(model), 0
    for name, module in tree.modules.items():
        given, made = widths.get(module, (None, None))
        match = Match(name, module, None)
        for of_input, seen in ((False, made), (True, given)):
            declared = declared_width(tree, match, of_input=of_input)
            if declared is not None and seen is not None:
                assert declared == seen, (name, of_input)
                checked += 1
    assert checked >= 4


BLOCKS: dict[str, str] = {
    "llama": "model.layers.1",
    "gpt2": "transformer.h.1",
    "bert": "bert.encoder.layer.1",
    "qwen3": "model.layers.1",
    "gemma3": "model.layers.1",
    "mixtral": "model.layers.1",
    "t5": "decoder.block.1",
    "vit": "vit.encoder.layer.1",
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_declares_that_of_its_configuration(kind: str) -> None:
    model = MODELS[kind][0]()
    assert isinstance(model, PreTrainedModel)
    tree = ModuleTree(model)
    name = next(
        name for name in (BLOCKS[kind], BLOCKS[kind].replace("encoder.layer", "layers")) if name in tree.modules
    )
    for of_input in (False, True):
        assert declared_width(tree, Match(name, tree.modules[name], 1), of_input=of_input) == WIDTH


class Halves(nn.Linear):
    """Returns the halves of its output, so that its ``out_features`` is not their width."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).chunk(2, -1)


def widths_of(layer: nn.Module) -> tuple[int | None, int | None]:
    tree, match = ModuleTree(nn.Sequential(layer)), Match("0", layer, 0)
    return declared_width(tree, match, of_input=True), declared_width(tree, match)


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (Halves(2, 8), (None, None)),
        (nn.GELU(), (None, None)),
        (nn.LazyLinear(4), (None, 4)),
        (nn.LazyBatchNorm1d(), (None, None)),
        (nn.LayerNorm((3, 8)), (None, None)),
        (nn.MaxPool2d(2), (None, None)),
        (nn.MultiheadAttention(8, 2, kdim=4), (None, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_not_certain_is_not_declared(layer: nn.Module, widths: tuple[int | None, int | None]) -> None:
    assert widths_of(layer) == widths


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Conv1d(2, 3, 1), (4, 2, 5), -2),
        (nn.ConvTranspose3d(2, 3, 1), (4, 2, 5, 5, 5), -4),
        (nn.InstanceNorm2d(3), (4, 3, 5, 5), -3),
        (nn.BatchNorm1d(3), (4, 3), -1),
        (nn.GroupNorm(1, 3), (4, 3, 5), -2),
        (nn.LSTM(2, 3, bidirectional=True), (4, 5, 2), -1),
        (nn.LSTM(2, 3, proj_size=1), (4, 5, 2), -1),
        (nn.GRU(2, 3), (4, 5, 2), -1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_torchs_layers_declare_the_sizes_of_their_channels(
    layer: nn.Module, shape: tuple[int, ...], channels: int
) -> None:
    x = torch.zeros(shape)
    made = layer(x)[0] if isinstance(layer, nn.RNNBase) else layer(x)
    assert widths_of(layer) == (x.size(channels), made.size(channels))
