"""Batches of texts for extraction."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mi_crow_lightning import LabelCollator, PairCollator
from tests.tiny_gpt2 import tokenizer

TEXTS = [("Hello, world!", "Hi"), ("The quick brown fox", "jumps"), ("over the lazy", "dog")]


def tokenize() -> Any:
    return partial(tokenizer(pad_token="<|endoftext|>"), padding=True, return_tensors="pt")


def test_pairs_stay_together_and_in_rows() -> None:
    loader = DataLoader(TEXTS, batch_size=2, shuffle=True, collate_fn=PairCollator(tokenize()))  # type: ignore[arg-type]
    texts = set()
    for batch in loader:
        assert batch["label"].tolist() == [1, 0] * (len(batch["label"]) // 2)
        assert batch["pair"].tolist() == [i // 2 for i in range(len(batch["label"]))]
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        rows = tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
        texts |= {(rows[i], rows[i + 1]) for i in range(0, len(rows), 2)}
    assert texts == set(TEXTS)


def test_labels_are_kept() -> None:
    collate = LabelCollator(tokenize())
    assert torch.equal(collate([("Hi", 1), ("dog", 0)])["label"], torch.tensor([1, 0]))
    assert collate([("Hi", "joy"), ("dog", "sorrow")])["label"] == ["joy", "sorrow"]


@pytest.mark.parametrize("collator", [PairCollator, LabelCollator])
def test_workers_get_a_copy(collator: Any) -> None:
    items = TEXTS if collator is PairCollator else [("Hi", 1)]
    again = pickle.loads(pickle.dumps(collator(tokenize())))
    assert torch.equal(again(items)["input_ids"], collator(tokenize())(items)["input_ids"])


@pytest.mark.parametrize("wrong", ["Hi", ("Hi",), ("Hi", 1), ("a", "b", "c")])
def test_what_is_no_pair_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"each item must be a pair of texts, \(positive, negative\), not"):
        PairCollator(tokenize())([wrong])


@pytest.mark.parametrize("wrong", ["Hi", ("Hi",), (1, "Hi")])
def test_what_is_no_labelled_text_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"each item must be a text and its label"):
        LabelCollator(tokenize())([wrong])
