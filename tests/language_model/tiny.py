"""Tiny causal language models that share one tokenizer, with an end-of-text token (0) apart from the padding token."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from tests.models import WIDTH, llama
from tests.tiny_gpt2 import tokenizer

KINDS = ("llama", "gpt2")
VOCABULARY = 304
TEXTS = ["Hello, world!", "The quick brown fox jumps over the lazy dog.", "Hi there", "The lazy fox", "Hello, dog!"]

# The models are tiny: more threads only wait for one another.
torch.set_num_threads(1)


def tokens() -> Any:
    return tokenizer(eos_token="<|endoftext|>", pad_token="<pad>")


def model_of(kind: str, dropout: float = 0.0) -> Any:
    """A model of four blocks, in evaluation mode as ``from_pretrained`` gives it."""
    if kind == "llama":
        ids = dict(pad_token_id=None, bos_token_id=0, eos_token_id=0)
        return llama(vocab_size=VOCABULARY, attention_dropout=dropout, **ids).eval()
    torch.manual_seed(0)
    sizes = dict(n_embd=WIDTH, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    # Untied and wide apart, so that texts do not just repeat their last token.
    init = dict(tie_word_embeddings=False, initializer_range=0.2)
    drops = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **init, **drops)).eval()


def block_of(model: Any, index: int) -> Any:
    return (model.model.layers if hasattr(model, "model") else model.transformer.h)[index]


def texts_loader(texts: list[str] | None = None, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(TEXTS if texts is None else texts, batch_size=batch_size)  # type: ignore[arg-type]
