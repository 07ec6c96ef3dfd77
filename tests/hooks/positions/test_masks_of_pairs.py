"""Masks of pairs, (B, 1, Tq, Tk): packed texts, windows, trees, padding on the right, guards against NaN."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from mi_crow_lightning.hooks import ActivationStatistics, SteeringController, Tokens, attached
from mi_crow_lightning.hooks.positions.pass_columns import columns_of, only_themselves
from tests.hooks.positions.masks import mask_of
from tests.models import VOCABULARY, WIDTH, llama

IDS = torch.randint(3, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
CAUSAL = torch.ones(8, 8).tril().bool()
TEXT = torch.tensor([0] * 5 + [1] * 3)
RIGHT = torch.arange(8) < torch.tensor([[5], [8]])
LEFT = torch.arange(8) >= torch.tensor([[3], [0]])
NOTHING = torch.zeros(2, 8, dtype=torch.bool)


def both(real: Tensor) -> Tensor:
    """Pairs of real tokens, each seeing the ones before it, ``(B, 1, 8, 8)``."""
    return (CAUSAL & real[:, None, :] & real[:, :, None])[:, None]


def tree() -> Tensor:
    """Two branches of three tokens after a trunk of two, as in speculative decoding."""
    branch = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    sees = (branch[None] == 0) | (branch[None] == branch[:, None])
    return (CAUSAL & sees).expand(2, 1, 8, 8)


FORMS = {
    "packed": (((TEXT[:, None] == TEXT) & CAUSAL).expand(2, 1, 8, 8), ~NOTHING),
    "window": (both(LEFT) & torch.ones(8, 8).triu(-2).bool(), LEFT),
    "tree": (tree(), ~NOTHING),
    "padding on the right": (both(RIGHT), RIGHT),
    "padding on the left": (both(LEFT), LEFT),
    "keys only": ((CAUSAL & RIGHT[:, None, :])[:, None], RIGHT),
    "both directions": (RIGHT[:, None, None, :].expand(2, 1, 8, 8), RIGHT),
}


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_token_is_real_if_any_query_sees_it(form: str, additive: bool) -> None:
    mask, real = FORMS[form]
    model = llama(attn_implementation="eager").eval()
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert mask_of(model, input_ids=IDS, attention_mask=mask) == real.int().tolist()


def test_three_dimensions() -> None:
    assert torch.equal(columns_of(both(RIGHT)[:, 0]), RIGHT)


def packed() -> dict[str, Tensor]:
    mask = ((TEXT[:, None] == TEXT) & CAUSAL)[None, None]
    return dict(input_ids=IDS[:1], attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]))


@pytest.mark.parametrize(("tokens", "expected"), [("all", [1] * 8), ("last", [0, 0, 0, 0, 1, 0, 0, 1])])
def test_packed_texts_are_steered(tokens: str, expected: list[int]) -> None:
    model = llama(attn_implementation="eager").eval()
    seen: list[Tensor] = []
    for hooks in ([], [SteeringController("block:1", torch.randn(WIDTH), tokens=tokens)]):
        with torch.no_grad(), attached(model, hooks):
            handle = model.model.layers[1].register_forward_hook(lambda module, args, out: seen.append(out))
            model(**packed())
            handle.remove()
    assert (seen[0] != seen[1]).any(-1)[0].int().tolist() == expected


def guarded() -> Tensor:
    """Padding on the left that sees itself, so that no row of the softmax is empty."""
    return both(LEFT) | torch.eye(8).bool()


def test_padding_that_sees_only_itself_counts_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"3 tokens see only themselves in the attention mask \(2, 1, 8, 8\)"):
        found = mask_of(llama().eval(), input_ids=IDS, attention_mask=guarded())
    assert found == [[1] * 8] * 2


def test_the_batch_says_which_tokens_are_guards() -> None:
    model, seen = llama().eval(), []
    model.model.layers[0].register_forward_hook(lambda module, args, out: seen.append(out.double()))
    hook = ActivationStatistics("block:0", statistics=["token_norm_mean"], histogram=False)
    with warnings.catch_warnings(), torch.no_grad(), attached(model, hook) as layers:
        warnings.simplefilter("error")
        layers.begin_batch(None, {"input_ids": IDS, "attention_mask": LEFT.long()})
        model(input_ids=IDS, attention_mask=guarded())
        (reading,) = layers.take_readings()
    assert reading.value == pytest.approx(seen[0][LEFT].norm(dim=-1).mean().item(), rel=1e-6)


def test_who_sees_only_itself_is_looked_for_in_the_columns_of_the_pass() -> None:
    """Three columns in a cache stand before the two of the pass."""
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]])[None, None].bool()
    found = only_themselves(mask, 3)
    assert found is not None and found.tolist() == [[False, True]]
    assert only_themselves(mask, 4) is None and only_themselves(mask[..., :1, :], 3) is None


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", "last", Tokens(window=(6, 10))])
def test_a_sliding_window_with_a_static_cache_steers_as_without_one(tokens: str | Tokens) -> None:
    """The cache's mask has four dimensions and hides tokens that left the window; the 2-D mask shows them all."""

    def generated(**options: Any) -> Tensor:
        torch.manual_seed(0)
        sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
        model = MistralForCausalLM(
            MistralConfig(vocab_size=VOCABULARY, num_hidden_layers=2, sliding_window=4, eos_token_id=None, **sizes)
        ).eval()
        steer = SteeringController("block:1", 3 * torch.linspace(-1, 1, WIDTH), tokens=tokens)
        asked = dict(max_new_tokens=6, do_sample=False, output_scores=True, return_dict_in_generate=True)
        with attached(model, steer):
            out = model.generate(IDS, attention_mask=LEFT.long(), pad_token_id=0, **asked, **options)
        return torch.stack(out.scores)

    torch.testing.assert_close(generated(cache_implementation="static"), generated(), atol=1e-4, rtol=1e-4)
