"""Tiny models with attention of many kinds, and their heads taken out and put back by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, MixtralConfig, MixtralForCausalLM

from tests.models import VOCABULARY, gpt2, llama

HEADS = 4
TOKENS: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
SIZES: dict[str, Any] = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2)


def gemma() -> GemmaForCausalLM:
    """Its heads together are twice as wide as its residual stream."""
    torch.manual_seed(0)
    heads = dict(num_attention_heads=HEADS, num_key_value_heads=1, head_dim=16)
    return GemmaForCausalLM(GemmaConfig(**SIZES, **heads, **TOKENS))


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    heads = dict(num_attention_heads=HEADS, num_key_value_heads=2, num_local_experts=3)
    return MixtralForCausalLM(MixtralConfig(**SIZES, **heads, **TOKENS))


MODELS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    # name: the model, the output projection of block 1, the width of a head
    "llama": (lambda: llama(num_hidden_layers=2), "model.layers.1.self_attn.o_proj", 8),
    "gpt2": (gpt2, "transformer.h.1.attn.c_proj", 8),
    "gemma": (gemma, "model.layers.1.self_attn.o_proj", 16),
    "mixtral": (mixtral, "model.layers.1.self_attn.o_proj", 8),
}

_IDS = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(3))
REAL = torch.ones(3, 7, dtype=torch.bool)
REAL[1, :2] = False
BATCH = {"input_ids": torch.where(REAL, _IDS, 0), "attention_mask": REAL.long()}


def by_hand(model: nn.Module, projection: str, width: int, edit: Callable[[Tensor], Tensor] | None, head: int) -> Any:
    """Note the heads ``(B, T, H, D_head)`` of each pass, and edit one of them by a pre-hook of torch alone."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        x = args[0].clone()
        seen.append(x.detach().clone().unflatten(-1, (HEADS, width)))
        if edit is None:
            return None
        piece = slice(head * width, (head + 1) * width)
        x[..., piece] = edit(args[0][..., piece])
        return (x, *args[1:])

    model.get_submodule(projection).register_forward_pre_hook(hook)
    return seen
