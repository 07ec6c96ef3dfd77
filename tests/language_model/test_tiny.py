"""`tiny_language_model` is the same at each call, has the words that it was given, and takes no random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mi_crow_lightning import tiny_language_model

TEXTS = ["the sea is bright", "the road is dark"]


def test_it_is_the_same_at_each_call_and_takes_no_random_numbers() -> None:
    before = torch.get_rng_state()
    (first, _), (again, _), (other, _) = (tiny_language_model(TEXTS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, same) for one, same in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_it_has_the_sizes_that_were_asked_for() -> None:
    model, tokenizer = tiny_language_model(iter(TEXTS), blocks=3, width=16)
    assert len(model.model.layers) == 3 and model.training
    assert model.lm_head.weight.shape == (len(tokenizer), 16) == (len({*" ".join(TEXTS).split()}) + 2, 16)


def test_a_text_comes_back_and_an_unknown_word_is_one_token() -> None:
    _, tokenizer = tiny_language_model(TEXTS)
    assert tokenizer.decode(tokenizer(TEXTS[1]).input_ids) == TEXTS[1]
    assert tokenizer.decode(tokenizer("the blue sea").input_ids, skip_special_tokens=True) == "the <unknown> sea"
    padded = tokenizer(["the sea", "the"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"texts": "the sea"}, TypeError, r"texts='the sea' must be a list of texts, not one text: give \['the sea'\]"),
        ({"texts": [" ", ""]}, ValueError, "must hold at least one word"),
        ({"texts": []}, ValueError, r"texts=\[\] must hold at least one word"),
        ({"texts": TEXTS, "width": 20}, ValueError, "width=20 must be a multiple of 8"),
        ({"texts": TEXTS, "width": 4}, ValueError, "width=4"),
        ({"texts": TEXTS, "blocks": 0}, ValueError, "blocks=0"),
    ],
)
def test_what_cannot_be_made_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_language_model(**given)
