"""Directions and statistics over the channels of models that mix layers of both kinds, against plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    PatchTSTConfig,
    PatchTSTModel,
    SwinConfig,
    SwinModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from mi_crow_lightning import ActivationStatistics, SteeringController, attached
from mi_crow_lightning.hooks.activations import take_output


def convnext() -> nn.Module:
    return ConvNextModel(ConvNextConfig(hidden_sizes=[8, 10], depths=[1, 1], num_stages=2, image_size=64))


def swin() -> nn.Module:
    config = SwinConfig(image_size=64, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4)
    return SwinModel(config)


def patchtst() -> nn.Module:
    sizes = dict(num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, d_model=16)
    return PatchTSTModel(
        PatchTSTConfig(num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, **sizes)
    )


def wav2vec2(norm: str) -> nn.Module:
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    features = dict(conv_dim=(12, 12), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2)
    positions = dict(num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    return Wav2Vec2Model(Wav2Vec2Config(feat_extract_norm=norm, **sizes, **features, **positions))


def gemma3n() -> nn.Module:
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    streams = dict(num_key_value_heads=1, laurel_rank=4, hidden_size_per_layer_input=8, num_kv_shared_layers=0)
    kinds = dict(layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0] * 2)
    vocabulary = dict(vocab_size=40, vocab_size_per_layer_input=40)
    return Gemma3nForCausalLM(Gemma3nTextConfig(**sizes, **streams, **kinds, **vocabulary))


PIXELS = dict(pixel_values=(2, 3, 64, 64))
SPEECH = dict(input_values=(2, 1000))
SERIES = dict(past_values=(2, 32, 3))
IDS = dict(input_ids=(2, 7))
CASES: list[tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]], str, int]] = [
    (convnext, PIXELS, "embeddings", 1),
    (convnext, PIXELS, "embeddings.layernorm", 1),
    (convnext, PIXELS, "encoder.stages.0.layers.0", 1),
    (convnext, PIXELS, "encoder.stages.0.layers.0.dwconv", 1),
    (convnext, PIXELS, "encoder.stages.0.layers.0.layernorm", -1),
    (convnext, PIXELS, "encoder.stages.0.layers.0.act", -1),
    (convnext, PIXELS, "encoder.stages.0.layers.0.pwconv2", -1),
    (convnext, PIXELS, "encoder.stages.0.layers.0.drop_path", 1),
    (convnext, PIXELS, "encoder.stages.1", 1),
    (swin, PIXELS, "embeddings.patch_embeddings.projection", 1),
    (swin, PIXELS, "embeddings.patch_embeddings", -1),
    (swin, PIXELS, "encoder.layers.0", -1),
    (swin, PIXELS, "encoder.layers.1.blocks.0.layernorm_after", -1),
    (swin, PIXELS, "pooler", 1),
    (patchtst, SERIES, "encoder.embedder", -1),
    (patchtst, SERIES, "encoder.layers.0", -1),
    (patchtst, SERIES, "encoder.layers.0.norm_sublayer1", -1),
    (patchtst, SERIES, "encoder.layers.0.norm_sublayer1.batchnorm", 1),
    *((lambda norm=norm: wav2vec2(norm), SPEECH, name, dim)  # type: ignore[misc]
      for norm in ("group", "layer")
      for name, dim in [
          ("feature_extractor", 1),
          ("feature_extractor.conv_layers.0", 1),
          ("feature_extractor.conv_layers.0.conv", 1),
          ("feature_extractor.conv_layers.0.layer_norm", 1 if norm == "group" else -1),
          ("feature_extractor.conv_layers.1.activation", 1),
          ("feature_projection", -1),
          ("encoder.pos_conv_embed", -1),
          ("encoder.pos_conv_embed.conv", 1),
          ("encoder.layers.0", -1),
      ]),
    (gemma3n, IDS, "model.layers.0", -1),
    (gemma3n, IDS, "model.layers.1.self_attn.q_norm", -1),
    (gemma3n, IDS, "model.layers.1.laurel", -1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "sizes", "layer", "dim"), CASES, ids=[f"{case[0].__name__} {case[2]}" for case in CASES]
)
def test_the_channels_of_a_model_are_those_of_its_layers(
    make: Callable[[], nn.Module], sizes: dict[str, tuple[int, ...]], layer: str, dim: int
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    batch = {
        key: torch.randn(size) if key != "input_ids" else torch.randint(3, 40, size) for key, size in sizes.items()
    }
    seen: list[Tensor] = []

    def capture(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(take_output(output))

    handle = model.get_submodule(layer).register_forward_hook(capture)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    x = seen[0]
    width = x.shape[dim]
    vector = torch.randn(width)

    with torch.no_grad(), attached(model, ActivationStatistics(layer)) as layers:
        model(**batch)
        got = {reading.name: reading.value for reading in layers.take_readings()}
    rows = x.movedim(dim, -1).double().numpy().reshape(-1, width)
    assert got["token_norm_mean"] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-5)

    with torch.no_grad(), attached(model, SteeringController(layer, vector)):
        handle = model.get_submodule(layer).register_forward_hook(capture)
        model(**batch)
        handle.remove()
    torch.testing.assert_close(seen[-1], (x.movedim(dim, -1) + vector).movedim(-1, dim))
