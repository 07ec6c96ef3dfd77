"""Following ``generate``: prompts of every form, several registries, a generate of the user's own, heads."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks import ActivationStatistics, FunctionController, Layers
from tests.hooks.by_hand import endless, prompts
from tests.models import WIDTH, llama

PROMPT, NEW = 6, 4
WHICH = ("all", "prompt", "generated", "last")


def test_a_prompt_without_a_mask_or_of_one_token() -> None:
    model = endless(llama())
    statistics = {which: ActivationStatistics("block:1", tokens=which, statistics=["mean"]) for which in WHICH}
    layers = Layers(model, allow_stacking=True)
    for detector in statistics.values():
        layers.register_hook(None, detector)
    model.generate(torch.tensor([[7]]), max_new_tokens=NEW, do_sample=False)
    assert {which: tokens_seen(detector) for which, detector in statistics.items()} == {
        "all": NEW,
        "prompt": 1,
        "generated": NEW - 1,
        "last": NEW,
    }


def tokens_seen(detector: ActivationStatistics) -> float:
    return sum(r.value.total for r in detector.readings() if r.name == "histogram") / WIDTH  # type: ignore[union-attr]


def test_two_registries_on_one_model_both_follow_generate() -> None:
    """Also when the one that came first goes first."""
    model = endless(llama())
    one, other = (ActivationStatistics("block:1", tokens="generated", statistics=["mean"]) for _ in range(2))
    first_layers, second_layers = Layers(model), Layers(model)
    options = dict(max_new_tokens=NEW, do_sample=False, use_cache=False)
    seen = NEW * (NEW - 1) / 2  # without a cache the generated tokens are seen again and again
    first_layers.register_hook(None, one)
    second_layers.register_hook(None, other)
    model.generate(**prompts(lengths=(5,)), **options)
    assert tokens_seen(one) == tokens_seen(other) == seen
    first_layers.unregister_all_hooks()
    model.generate(**prompts(lengths=(5,)), **options)
    assert tokens_seen(one) == seen and tokens_seen(other) == 2 * seen
    second_layers.unregister_all_hooks()
    assert "generate" not in model.__dict__


def test_a_generate_of_the_users_own_comes_back() -> None:
    model = endless(llama())
    bound = model.generate
    model.generate = lambda *args, **kwargs: bound(*args, **kwargs, max_new_tokens=2)
    mine = model.generate
    layers, detector = Layers(model), ActivationStatistics("block:1", tokens="generated", statistics=["mean"])
    layers.register_hook(None, detector)
    assert model.generate(**prompts()).shape == (3, PROMPT + 2)
    assert tokens_seen(detector) == 3
    layers.unregister_all_hooks()
    assert model.generate is mine


@pytest.mark.parametrize("which", ["generated", "last", "all"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_head_that_sees_one_token_is_edited_from_the_first_on(which: str, cached: bool) -> None:
    """``generate`` calls the head for the last token of the prompt alone."""
    model = llama().eval()

    def force(logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -100.0)
        forced[..., 42] = 100.0
        return forced

    Layers(model).register_hook("lm_head", FunctionController(None, force, tokens=which))
    ids, mask = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=cached)
    assert (new[:, 4:] == 42).all()


def test_continuous_batching_is_refused_while_hooks_are_on() -> None:
    model = endless(llama())
    config = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    one, other = Layers(model), Layers(model)
    for layers in (one, other):
        layers.register_hook(None, ActivationStatistics("block:1", tokens="generated"))
    for layers in (one, other):
        with pytest.raises(TokensUnknown, match=r"continuous batching \(generate_batch\) puts the tokens of several"):
            model.generate_batch([[3, 4, 5]], generation_config=config)
        copied = copy.deepcopy(model)
        assert copied.init_continuous_batching == type(model).init_continuous_batching.__get__(copied)  # its own
        layers.unregister_all_hooks()
    assert not {"generate", "init_continuous_batching"} & model.__dict__.keys()
