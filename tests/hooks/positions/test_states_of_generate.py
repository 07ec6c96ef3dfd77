"""`generate` of models whose cache, or lack of one, does not say how many tokens came before, or that drop the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    ReformerConfig,
    ReformerModelWithLMHead,
    XLMConfig,
    XLMWithLMHeadModel,
)

from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.hooks.passes.token_call import Generation
from tests.hooks.positions.masks import Mask
from tests.models import VOCABULARY, llama

IDS = torch.randint(3, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
REAL = (torch.arange(6) >= torch.tensor([[2], [0], [1]])).long()  # left padded
NEW = 3


class DropsTheMask(LlamaForCausalLM):
    """A model that hands no attention mask on, as Reformer and xLSTM do."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {name: value for name, value in inputs.items() if name != "attention_mask"}


class NewCacheInEachPass(LlamaForCausalLM):
    """A model that gets an empty cache also where it uses none, as Falcon-H1 did."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return inputs if inputs.get("use_cache") else inputs | {"past_key_values": DynamicCache()}


def reformer() -> ReformerModelWithLMHead:
    """A model with a state of hashes, which does not count its tokens."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=32)
    lengths = dict(axial_pos_embds=False, max_position_embeddings=64, vocab_size=VOCABULARY, attn_layers=["local"] * 2)
    model = ReformerModelWithLMHead(ReformerConfig(is_decoder=True, eos_token_id=None, **sizes, **lengths))
    return model.eval()


def of_class(cls: type[LlamaForCausalLM]) -> LlamaForCausalLM:
    model = llama(eos_token_id=None).eval()
    model.__class__ = cls
    return model


def masks(model: Any, tokens: str, cached: bool, layer: str = "block:0") -> list[Tensor]:
    """The tokens chosen in each pass of `generate`."""
    layers, detector = Layers(model), Mask(layer, tokens)
    layers.register_hook(None, detector)
    options = dict(max_new_tokens=NEW, do_sample=False, use_cache=cached, pad_token_id=0)
    model.generate(IDS, attention_mask=REAL, **options)
    layers.unregister_all_hooks()
    return [mask.bool() for mask in detector.calls]


def expected(tokens: str, cached: bool) -> list[Tensor]:
    """The tokens that are chosen in each pass, by their columns."""
    found = []
    for new in range(NEW):
        real = torch.cat([REAL.bool(), torch.ones(3, new, dtype=torch.bool)], 1)
        columns = torch.arange(6 + new)
        chosen = {"all": real, "prompt": real & (columns < 6), "generated": real & (columns >= 6)}[tokens]
        found.append(chosen[:, -1:] if cached and new else chosen)
    return found


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("cls", [LlamaForCausalLM, DropsTheMask, NewCacheInEachPass])
def test_tokens_are_those_of_the_prompt_and_its_continuation(
    cls: type[LlamaForCausalLM], cached: bool, tokens: str
) -> None:
    for found, wanted in zip(masks(of_class(cls), tokens, cached), expected(tokens, cached), strict=True):
        assert torch.equal(found.expand_as(wanted), wanted)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_state_that_does_not_count_its_tokens(cached: bool, tokens: str) -> None:
    for found, wanted in zip(masks(reformer(), tokens, cached), expected(tokens, cached), strict=True):
        assert torch.equal(found.expand_as(wanted), wanted)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
def test_a_model_that_appends_a_token_to_fill_in(tokens: str) -> None:
    """XLM has no cache and takes no mask in `generate`; each pass ends with a token that is not yet generated."""
    sizes = dict(emb_dim=32, n_layers=2, n_heads=2, n_words=VOCABULARY, max_position_embeddings=64)
    model = XLMWithLMHeadModel(XLMConfig(**sizes, eos_token_id=None)).eval()
    found = masks(model, tokens, cached=False, layer="transformer.ffns.0")
    for mask, without in zip(found, expected(tokens, cached=False), strict=True):
        filler = torch.full((3, 1), tokens != "prompt")
        assert torch.equal(mask, torch.cat([without, filler], 1))


def test_the_mask_counts_where_the_cache_does_not() -> None:
    """The empty cache of some hybrid models has the length of the batch."""
    model, generation = nn.Identity(), Generation(11, torch.ones(3, 11))
    assert generation.past_of(model, 3, 11, torch.ones(3, 11)) == 0
    assert generation.past_of(model, 11, 1, torch.ones(3, 12)) == 11


def test_a_state_goes_on_or_is_absent() -> None:
    model, generation = nn.Identity(), Generation(5, torch.tensor([[0, 0, 1, 1, 1]]))
    assert [generation.past_of(model, None, tokens, None) for tokens in (5, 1, 1)] == [0, 5, 6]
    assert [generation.past_of(model, None, tokens, None) for tokens in (8, 9)] == [0, 0]  # the whole sequence
    mask = generation.mask_so_far(model, 2)  # two beams
    assert mask is not None and mask.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 1]] * 2


def test_a_model_that_reads_the_prompt_in_each_pass_again_has_no_state() -> None:
    model, generation = nn.Identity(), Generation(5)
    assert [generation.past_of(model, None, 5, None) for _ in range(3)] == [0, 0, 0]


def test_a_prompt_of_one_token_goes_on_with_one_token() -> None:
    model, generation = nn.Identity(), Generation(1)
    assert [generation.past_of(model, None, tokens, None) for tokens in (1, 1, 1)] == [0, 1, 2]


def test_a_model_of_other_tokens_does_not_go_on_with_the_prompt() -> None:
    """Such as the queries that read a picture, in each pass again."""
    model, generation = nn.Identity(), Generation(11, torch.ones(3, 11))
    assert [generation.past_of(model, None, 32, None) for _ in range(3)] == [None] * 3
    assert generation.mask_so_far(model, 3) is None
