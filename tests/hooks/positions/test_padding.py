"""Which tokens are real and which are chosen, outside of ``generate``: masks of every form, and none."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError, TokensUnknown
from mi_crow_lightning.hooks import (
    ActivationStatistics,
    FunctionController,
    Layers,
    Moment,
    Stage,
    SteeringController,
    Tokens,
)
from tests.hooks.positions.masks import Mask, mask_of
from tests.models import bert, gpt2, llama, vit

IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
MASK = (IDS != 0).long()
TRUE, FALSE = True, False

REAL = MASK.tolist()
FULL = torch.ones(2, 5, dtype=torch.int).tolist()
NONE = torch.zeros(2, 5, dtype=torch.int).tolist()
ENDS = [[0, 0, 0, 0, 1]] * 2


@pytest.mark.filterwarnings("ignore:the token IDs .* look padded:UserWarning")
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_in_a_training_forward_all_tokens_are_prompt(make: Any, mode: str) -> None:
    model = getattr(make(), mode)()
    for which, expected in (("all", REAL), ("prompt", REAL), ("generated", NONE), ("last", ENDS)):
        assert mask_of(model, which=which, input_ids=IDS, attention_mask=MASK, labels=IDS) == expected
        assert mask_of(model, "block:1.mlp", which, input_ids=IDS, attention_mask=MASK) == expected
    assert mask_of(model, input_ids=IDS) == FULL
    flipped = MASK.flip(1)
    assert mask_of(model, which="last", input_ids=IDS, attention_mask=flipped) == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]


def test_masks_of_four_dimensions() -> None:
    causal = torch.ones(5, 5).tril().bool()
    allowed = causal & MASK.bool()[:, None, None, :]
    additive = torch.zeros(2, 1, 5, 5).masked_fill(~allowed, torch.finfo(torch.float32).min)
    model = llama().eval()
    for mask in (allowed, additive):
        assert mask_of(model, input_ids=IDS, attention_mask=mask) == REAL
    broadcast = causal[None, None]
    assert mask_of(model, input_ids=IDS, attention_mask=broadcast) == FULL


def test_an_encoder() -> None:
    model, call = bert().eval(), dict(input_ids=IDS, attention_mask=MASK)
    for signature in ("block:1", "block:1.attn", "bert.embeddings", "block:0.intermediate"):
        assert mask_of(model, signature, **call) == REAL
        assert mask_of(model, signature, "last", **call) == ENDS
        assert mask_of(model, signature, "generated", **call) == NONE
    assert mask_of(model, "bert.pooler", **call) == torch.ones(2, 32, dtype=torch.int).tolist()
    with pytest.raises(
        HookError, match=r"tokens='last' needs an activation \(batch, tokens, features\), and 'bert.pooler'"
    ):
        mask_of(model, "bert.pooler", "last", **call)


def test_what_is_no_sequence_is_taken_whole() -> None:
    model = vit().eval()
    pixels = torch.randn(2, 3, 16, 16)
    assert (
        mask_of(model, "vit.embeddings.patch_embeddings.projection", pixel_values=pixels) == torch.ones(2, 32).tolist()
    )
    with pytest.raises(
        HookError, match=r"has shape \(2, 32, 2, 2\): use tokens='all', or choose another layer"
    ) as caught:
        mask_of(model, "vit.embeddings.patch_embeddings.projection", "last", pixel_values=pixels)
    assert isinstance(caught.value.original_error, TokensUnknown)


class Heads(nn.Module):
    """Gives attention weights, whose second dimension counts heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None) -> Tensor:
        batch, tokens = input_ids.shape
        weights: Tensor = self.weights(torch.rand(batch, 3, tokens, tokens))
        return weights


def test_a_mask_of_tokens_is_not_cut_to_heads() -> None:
    with pytest.warns(UserWarning, match=r"mask \(2, 5\) does not fit the activation \(2, 3, 5, 5\), so every element"):
        assert mask_of(Heads(), "weights", input_ids=IDS, attention_mask=MASK) == torch.ones(2, 3).tolist()


def test_a_loop_of_ones_own_with_a_cache() -> None:
    model = llama().eval()
    layers = Layers(model, allow_stacking=True)
    detectors = {which: Mask("block:1", which) for which in ("all", "prompt", "generated", "last")}
    for detector in detectors.values():
        layers.register_hook(None, detector)
    for _ in range(2):  # a second text on the same model
        ids, mask, cache = IDS, MASK, None
        for _ in range(3):
            with torch.no_grad():
                output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        seen = {which: [call.int().tolist() for call in detector.calls] for which, detector in detectors.items()}
        one, nil = [[1], [1]], [[0], [0]]
        assert seen == {
            "all": [REAL, one, one],
            "prompt": [REAL, nil, nil],
            "generated": [NONE, one, one],
            "last": [ENDS, one, one],
        }
        for detector in detectors.values():
            detector.calls.clear()


def test_in_a_loop_of_ones_own_positions_need_the_mask_of_the_whole_sequence() -> None:
    model = llama().eval()
    Layers(model).register_hook(None, SteeringController("block:1", torch.ones(32), tokens=Tokens(positions=[0, 5])))
    cache = model(input_ids=IDS, attention_mask=MASK, use_cache=True).past_key_values
    with pytest.raises(HookError) as caught:
        model(input_ids=IDS[:, -1:], attention_mask=MASK[:, -1:], past_key_values=cache)
    with pytest.raises(TokensUnknown, match=r"mask \(2, 1\) does not cover the 5 tokens before this pass.* pass the"):
        raise caught.value.original_error


def test_steering_in_a_loop_of_ones_own_equals_generate() -> None:
    model = llama().eval()
    model.generation_config.eos_token_id = None
    Layers(model).register_hook(None, SteeringController("block:1", torch.randn(32), 3.0, tokens="generated"))
    expected = model.generate(input_ids=IDS[1:], max_new_tokens=4, do_sample=False)
    ids, cache, text = IDS[1:], None, [IDS[1:]]
    for _ in range(4):
        with torch.no_grad():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        text.append(ids)
    assert torch.equal(torch.cat(text, 1), expected)


class NoMask(nn.Module):
    """A model of embeddings and blocks that takes no attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 4)
        self.h = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.h:
            x = block(x)
        return x


def begun(batch: Any, which: str = "all", token_mask: Any = None, moment: Moment | None = None) -> list[list[int]]:
    model, detector = NoMask(), Mask("h.1", which)
    layers = Layers(model)
    layers.register_hook(None, detector)
    layers.begin_batch(moment, batch, token_mask)
    model(IDS)
    return detector.calls[-1].int().tolist()


def test_a_model_without_a_mask_takes_the_batchs() -> None:
    assert begun({"input_ids": IDS, "attention_mask": MASK}) == REAL
    assert begun({"input_ids": IDS, "attention_mask": MASK}, "last") == ENDS
    assert begun(None) == begun((IDS, MASK)) == begun({"x": IDS}) == FULL
    with pytest.warns(
        UserWarning, match="neither the model nor the batch has an attention mask, so every token counts"
    ):
        assert begun({"input_ids": IDS}) == FULL


def test_the_users_own_mask_wins() -> None:
    moment = Moment(Stage.TRAIN)
    own = MASK.flip(1)
    batch = {"input_ids": IDS, "attention_mask": MASK}
    assert begun(batch, token_mask=lambda batch: own, moment=moment) == own.tolist()
    assert begun(batch, token_mask=lambda batch: batch["input_ids"] > 5) == [[0, 0, 0, 1, 1]] * 2
    message = r"token_mask returned shape \(2, 4\) for 'h.1', whose activation has shape \(2, 5, 4\): it must return"
    with pytest.raises(HookError, match=message):
        begun(batch, token_mask=lambda batch: own[:, 1:])


def test_the_users_mask_is_of_the_loaded_batch_not_of_what_is_generated() -> None:
    model, detector = llama().eval(), Mask("block:1")
    layers = Layers(model)
    layers.register_hook(None, detector)
    layers.begin_batch(None, {"input_ids": IDS}, lambda batch: batch["input_ids"] > 100)
    model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False)
    assert [call.int().tolist() for call in detector.calls] == [REAL, [[1], [1]]]
    model(input_ids=IDS, attention_mask=MASK)
    assert detector.calls[-1].int().tolist() == NONE


def test_a_mask_that_fits_costs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mask_of(llama().eval(), "*.0.self_attn.q_proj", input_ids=IDS, attention_mask=MASK) == REAL


@pytest.mark.parametrize("which", ["everything", "", "Last"])
def test_choices_are_named(which: str) -> None:
    with pytest.raises(ValueError, match="is not known: choose one of 'all', 'prompt', 'generated', 'last'"):
        Tokens(which)
    with pytest.raises(ValueError, match="is not known: choose one of 'all'"):
        FunctionController(0, torch.tanh, tokens=which)


def test_tokens_are_named_or_made() -> None:
    tokens = Tokens("last")
    assert Tokens.of(tokens) is tokens and repr(Tokens.of("last")) == "Tokens('last')"
    with pytest.raises(TypeError, match=r"tokens=3 must be a name such as 'generated', or Tokens\(...\)"):
        Tokens.of(3)  # type: ignore[arg-type]


class Flattens(nn.Module):
    """Lays all tokens in one row, as a mixture's experts are called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.inner(inputs_embeds.reshape(-1, inputs_embeds.shape[-1]))
        return out.reshape(inputs_embeds.shape)


def test_tokens_in_one_row_are_masked_too() -> None:
    x = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    model = Flattens()
    statistics = ActivationStatistics("inner", statistics=["mean"], histogram=False)
    layers = Layers(model)
    layers.register_hook(None, statistics)
    layers.register_hook(None, FunctionController("inner", lambda x: x * 0))
    edited = model(x, attention_mask=mask)
    assert torch.equal(edited, torch.where(mask.bool()[..., None], 0.0, x))
    (mean,) = statistics.readings()
    assert mean.value == 0.0
    layers.get_controllers()[0].disable()
    statistics.reset()
    model(x, attention_mask=mask)
    (mean,) = statistics.readings()
    assert mean.value == pytest.approx(x[mask.bool()].mean().item())
