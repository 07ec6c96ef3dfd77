"""Texts to batches."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mi_crow_lightning.language_model import TextCollator
from tests.language_model.tiny import TEXTS, tokens
from tests.tiny_gpt2 import tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_the_tokens_of_each_text_and_padding_on_one_side(side: str) -> None:
    encode = tokens()
    encode.padding_side = "right" if side == "left" else "left"  # the tokenizer's own says nothing, and stays
    batch = TextCollator(encode, padding_side=side)(TEXTS)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert encode.padding_side != side
    width = batch["input_ids"].shape[1]
    for text, ids, mask in zip(TEXTS, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        real = encode(text)["input_ids"]
        padding, zeros = [encode.pad_token_id] * (width - len(real)), [0] * (width - len(real))
        assert ids == (padding + real if side == "left" else real + padding)
        assert mask == (zeros + [1] * len(real) if side == "left" else [1] * len(real) + zeros)


def test_texts_are_cut_where_that_is_asked_for() -> None:
    encode = tokens()
    assert TextCollator(encode, max_length=2)(TEXTS)["input_ids"].shape == (len(TEXTS), 2)
    long = " ".join(TEXTS * 5)
    assert TextCollator(encode)([long])["input_ids"].shape[1] == len(encode(long)["input_ids"]) > 64


def test_arguments_of_the_tokenizer() -> None:
    batch = TextCollator(tokens(), pad_to_multiple_of=8)(TEXTS)
    assert batch["input_ids"].shape[1] % 8 == 0


def test_in_the_workers_of_a_dataloader() -> None:
    collate = pickle.loads(pickle.dumps(TextCollator(tokens())))
    batches = list(DataLoader(TEXTS, batch_size=3, num_workers=1, collate_fn=collate))  # type: ignore[arg-type]
    assert [len(batch["input_ids"]) for batch in batches] == [3, 2]
    assert torch.equal(batches[0]["input_ids"], TextCollator(tokens())(TEXTS[:3])["input_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": None}, "texts need a tokenizer: pass one, e.g. CausalLMModule(model, tokenizer)"),
        ({"tokenizer": tokenizer()}, "the tokenizer has no padding token: set tokenizer.pad_token"),
        ({"padding_side": "both"}, "padding_side='both' is not known: choose one of 'left', 'right'"),
        ({"max_length": 2.5}, "max_length=2.5 must be a whole number of tokens, 1 or more"),
        ({"max_length": 0}, "max_length=0 must be a whole number of tokens, 1 or more"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        TextCollator(**{"tokenizer": tokens(), **arguments})
    assert str(caught.value) == message


@pytest.mark.parametrize("texts", ["Hello", [], [3], None])
def test_texts_must_be_a_list_of_strings(texts: Any) -> None:
    with pytest.raises(TypeError) as caught:
        TextCollator(tokens())(texts)
    assert str(caught.value) == f"texts must be a list of strings, not {texts!r}"


@pytest.mark.parametrize("texts", [["Hi", ""], [""]])
def test_a_text_without_tokens_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="the text '' has no tokens: leave it out"):
        TextCollator(tokens())(texts)
