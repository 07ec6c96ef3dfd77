"""A tiny language model, made on the spot: to try hooks on, without a download."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mi_crow_lightning._arguments import whole_number
from mi_crow_lightning._shown import shown

__all__ = ["tiny_language_model"]

_PADDING, _UNKNOWN = "<pad>", "<unknown>"


def tiny_language_model(texts: Iterable[str], blocks: int = 4, width: int = 32, seed: int = 0) -> tuple[Any, Any]:
    """Return a Llama with random weights, and a tokenizer whose tokens are the words of the texts.

    It takes the place of ``AutoModelForCausalLM.from_pretrained(...)`` and its tokenizer in an example, a test or the
    report of a bug: it needs no download, is the same at each call, and learns a few texts in seconds on a CPU. Without
    such a training, what it generates has no meaning.

    Args:
        texts: what the tokenizer is to know. A token is what stands between spaces; other words become one unknown
            token.
        blocks: how many blocks, ``L``.
        width: how many features a hidden state has, ``D``: a multiple of 8.
        seed: of the weights. The random numbers of the caller stay as they are.

    Returns:
        The model, a ``LlamaForCausalLM`` in training mode, and its tokenizer.

    Raises:
        ValueError, TypeError: there is no word in the texts, or an argument is not one of those named above.

    Examples:
        >>> model, tokenizer = tiny_language_model(["the sea is bright", "the sea is dark"])
        >>> tokenizer("the dark sea").input_ids
        [6, 3, 5]
        >>> model(input_ids=torch.tensor([[6, 3, 5]])).logits.shape
        torch.Size([1, 3, 7])
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if whole_number("width", width, 8) % 8:
        raise ValueError(f"width={width} must be a multiple of 8")
    whole_number("blocks", blocks, 1)
    tokenizer = _tokenizer(_words(texts))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def _words(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"texts={shown(texts)} must be a list of texts, not one text: give [{shown(texts)}]")
    words = sorted({word for text in texts for word in text.split()})
    if not words:
        raise ValueError(f"texts={shown(texts)} must hold at least one word")
    return words


def _tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {token: place for place, token in enumerate([_PADDING, _UNKNOWN, *words])}
    by_words = Tokenizer(models.WordLevel(tokens, unk_token=_UNKNOWN))
    by_words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The unknown token is not named as a special one, which decoding would leave out.
    return PreTrainedTokenizerFast(tokenizer_object=by_words, pad_token=_PADDING)
