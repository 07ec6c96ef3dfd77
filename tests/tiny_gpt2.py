"""A GPT-2 of 12 blocks, made and saved on the spot with a tokenizer of its own: a folder as transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TEXTS = ["Hello, world!", "The quick brown fox jumps over the lazy dog.", "Hi"]
BLOCKS = 12
WIDTH = 32


def tokenizer(**special_tokens: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on three sentences; without arguments with an end-of-text and no padding token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    special_tokens = special_tokens or {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )


def save_gpt2(folder: Path, **special_tokens: Any) -> Path:
    """Save model and tokenizer into ``folder``, which is returned."""
    torch.manual_seed(0)
    sizes = dict(n_embd=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, bos_token_id=0, eos_token_id=0, **sizes))
    model.save_pretrained(folder)
    tokenizer(**special_tokens).save_pretrained(folder)
    return folder
