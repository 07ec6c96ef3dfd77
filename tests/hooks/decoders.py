"""Small models that decode, and the block that steers them by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.models import BLOCKS, VOCABULARY, WIDTH

PROMPT, NEW = 6, 4
SIZES: dict[str, Any] = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=None)
    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS)
    return MistralForCausalLM(MistralConfig(**SIZES, **sizes, **heads))


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=3, num_heads=4)
    return T5ForConditionalGeneration(T5Config(**SIZES, **sizes, decoder_start_token_id=0, dropout_rate=0.0))


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64)
    ends = dict(decoder_start_token_id=2, forced_eos_token_id=None)
    return BartForConditionalGeneration(BartConfig(**SIZES, **sizes, **heads, **ends))


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def steer_by_hand(block: nn.Module, mask: Tensor, change: Tensor) -> Any:
    def steer(module: nn.Module, args: Any, output: Any) -> Any:
        x = first(output)
        x = torch.where(mask[..., None], x + change, x)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    return block.register_forward_hook(steer)
