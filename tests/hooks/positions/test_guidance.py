"""Classifier-free guidance: a second sequence inside one `generate`, whose prompt is the last token of the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from mi_crow_lightning.hooks import SteeringController, attached
from mi_crow_lightning.hooks.passes.token_call import Generation
from tests.models import VOCABULARY, WIDTH, llama

IDS = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
VECTOR = torch.linspace(-1, 1, WIDTH)


def model() -> LlamaForCausalLM:
    return llama(eos_token_id=None).eval()


def scores(lm: LlamaForCausalLM, **options: Any) -> Tensor:
    asked = dict(max_new_tokens=9, do_sample=False, output_scores=True, return_dict_in_generate=True)
    return torch.stack(lm.generate(IDS, attention_mask=torch.ones_like(IDS), **asked, pad_token_id=0, **options).scores)


def by_hand(**options: Any) -> Tensor:
    """Scores where a plain hook steers the last token of each pass, in both sequences."""
    lm = model()

    def steer(module: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, -1] += 0.5 * VECTOR
        return out

    lm.model.layers[1].register_forward_hook(steer)
    return scores(lm, guidance_scale=1.5, **options)


NEGATIVE = torch.randint(3, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(2))
# The prompt of guidance: the last token of the text, as long as the text, one token longer, and longer.
PROMPTS: list[dict[str, Any]] = [{}, *(dict(negative_prompt_ids=NEGATIVE[:, :width]) for width in (6, 7, 8))]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("tokens", ["generated", "last"])
def test_without_a_cache_both_sequences_are_steered_as_with_one(tokens: str, prompt: dict[str, Any]) -> None:
    lm = model()
    with attached(lm, SteeringController("block:1", VECTOR, 0.5, tokens=tokens)):
        got = scores(lm, guidance_scale=1.5, use_cache=False, **prompt)
    torch.testing.assert_close(got, by_hand(**prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", ["argument", "config", "model", "processor"])
def test_guidance_is_found_wherever_it_is_set(where: str) -> None:
    lm, options = model(), dict(use_cache=False)
    given = {"config": GenerationConfig(guidance_scale=1.5, eos_token_id=None)}.get(where)
    if where == "model":
        lm.generation_config.guidance_scale = 1.5
    options |= {"argument": dict(guidance_scale=1.5), "config": dict(generation_config=given)}.get(where, {})
    if where == "processor":
        processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, lm, use_cache=False)
        options["logits_processor"] = LogitsProcessorList([processor])
    with attached(lm, SteeringController("block:1", VECTOR, 0.5, tokens="generated")):
        got = scores(lm, **options)
    torch.testing.assert_close(got, by_hand(), atol=1e-4, rtol=1e-4)


def test_without_guidance_each_pass_is_one_of_the_text() -> None:
    """Also where a scale is set that changes nothing, and after a call with guidance."""
    found = []
    for options in ({}, dict(use_cache=False), dict(use_cache=False, guidance_scale=1)):
        lm = model()
        with attached(lm, SteeringController("block:1", VECTOR, 0.5, tokens="generated")):
            scores(lm, guidance_scale=1.5, use_cache=False)
            found.append(scores(lm, **options))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


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


def test_guidance_follows_each_pass_of_the_text() -> None:
    """A pass that is not as long as the other sequence is one of the text, as in models that run both as one batch."""
    generation, net = Generation(width=6, guidance=7), model()
    lengths = [6, 7, 7, 8, 9, 10]  # the fifth is no pass of a sequence that grows by one, and the sixth is not after it
    widths = [generation.prompt_of(net, None, 0, tokens)[0] for tokens in lengths]
    assert widths == [6, 7, 6, 7, 6, 6]
