"""Classifier-free guidance: a second sequence inside one `generate`, whose prompt is the last token of the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from mi_crow_lightning.hooks import SteeringController, attached
from tests.models import VOCABULARY, WIDTH, llama

IDS = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
VECTOR = torch.linspace(-1, 1, WIDTH)


def model() -> LlamaForCausalLM:
    return llama(eos_token_id=None).eval()


def scores(lm: LlamaForCausalLM, **options: Any) -> Tensor:
    asked = dict(max_new_tokens=9, do_sample=False, output_scores=True, return_dict_in_generate=True)
    return torch.stack(lm.generate(IDS, attention_mask=torch.ones_like(IDS), **asked, pad_token_id=0, **options).scores)


def by_hand() -> Tensor:
    """Scores where a plain hook steers the last token of each pass, in both sequences."""
    lm = model()

    def steer(module: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, -1] += 0.5 * VECTOR
        return out

    lm.model.layers[1].register_forward_hook(steer)
    return scores(lm, guidance_scale=1.5)


@pytest.mark.parametrize("tokens", ["generated", "last"])
def test_both_sequences_are_steered_from_their_first_token_to_the_last(tokens: str) -> None:
    lm = model()
    with attached(lm, SteeringController("block:1", VECTOR, 0.5, tokens=tokens)):
        got = scores(lm, guidance_scale=1.5)
    torch.testing.assert_close(got, by_hand(), atol=1e-4, rtol=1e-4)


def test_the_prompts_of_both_sequences_are_steered() -> None:
    lm, seen = model(), []

    def steer(module: Any, args: Any, out: Tensor) -> Tensor:
        seen.append(out.shape[1])
        return out + 0.5 * VECTOR if len(seen) <= 2 else out  # the first pass of each

    with attached(lm, SteeringController("block:1", VECTOR, 0.5, tokens="prompt")):
        got = scores(lm, guidance_scale=1.5)
    expected = model()
    expected.model.layers[1].register_forward_hook(steer)
    torch.testing.assert_close(got, scores(expected, guidance_scale=1.5), atol=1e-4, rtol=1e-4)
    assert seen[:2] == [6, 1]


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_two_calls_of_generate_do_not_disturb_each_other(tokens: str) -> None:
    lm = model()
    with attached(lm, SteeringController("block:1", VECTOR, 0.5, tokens=tokens)):
        found = [scores(lm), scores(lm, guidance_scale=1.5), scores(lm)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_assisted_decoding_is_steered_as_without_an_assistant(tokens: str) -> None:
    """The main model then reads several new tokens in one pass, and takes some of them back."""
    found = []
    for options in ({}, {"assistant_model": model()}):
        lm = model()
        with attached(lm, SteeringController("block:1", VECTOR, 2.0, tokens=tokens)):
            found.append(lm.generate(IDS[:1], max_new_tokens=9, do_sample=False, pad_token_id=0, **options))
    assert torch.equal(*found)
