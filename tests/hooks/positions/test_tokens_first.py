"""Models that lay out (tokens, batch, features), also where there are as many tokens as texts."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import FSMTConfig, FSMTForConditionalGeneration, XLNetConfig, XLNetLMHeadModel

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import ActivationStatistics, SteeringController, attached
from mi_crow_lightning.hooks.passes.axes import Axes, axes_of
from tests.hooks.positions.masks import first_of, mask_of

# The one of transformers 4.57 asks for a config that it does not keep.
needs_fsmt = pytest.mark.skipif(version("transformers") < "5", reason="FSMT does not run")
XLNET = ["transformer.word_embedding", "transformer.layer.1", "transformer.layer.0.ff.layer_1"]
FSMT = ["model.encoder.layers.1", "model.encoder.layers.0.fc1", "model.encoder.embed_tokens"]
ROWS = [2, 6]  # texts of six tokens


def xlnet() -> nn.Module:
    torch.manual_seed(0)
    return XLNetLMHeadModel(XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)).eval()


def fsmt() -> nn.Module:
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDES.items()}
    vocabularies = dict(langs=["en", "de"], src_vocab_size=64, tgt_vocab_size=64, max_position_embeddings=64)
    return FSMTForConditionalGeneration(FSMTConfig(d_model=32, **sizes, **vocabularies)).eval()


SIDES = dict(layers=2, attention_heads=4, ffn_dim=48)


CASES = [*((xlnet, one) for one in XLNET), *(pytest.param(fsmt, one, marks=needs_fsmt) for one in FSMT)]


def call_of(rows: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (rows, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.arange(6 - rows, 6)[:, None] + 1
    return dict(input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long())


def laid(mask: Tensor, x: Tensor, tokens_first: bool) -> Tensor:
    real = mask.bool()
    return x[real.T if tokens_first else real]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("make", "layer"), CASES)
def test_padding_is_left_out(make: Any, layer: str, rows: int) -> None:
    model, seen, call = make(), [], call_of(rows)
    model.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.append(first_of(out).double()))
    hook = ActivationStatistics(layer, statistics=["mean"], histogram=False)
    with warnings.catch_warnings(), torch.no_grad(), attached(model, hook) as layers:
        warnings.simplefilter("error")
        model(**call, **({} if make is xlnet else dict(decoder_input_ids=call["input_ids"])))
        (reading,) = layers.take_readings()
    expected = laid(call["attention_mask"], seen[0], layer != "model.encoder.embed_tokens").mean().item()
    assert reading.value == pytest.approx(expected, rel=1e-5, abs=1e-8)


@needs_fsmt
@pytest.mark.parametrize("at", ["", ".encoder_attn.q_proj", ".encoder_attn.k_proj", ".self_attn.k_proj"])
@pytest.mark.parametrize("rows", ROWS)
def test_the_two_texts_of_a_translation_keep_their_masks(rows: int, at: str) -> None:
    call = call_of(rows)
    other = call["attention_mask"].flip(0).clone()
    other[0] = 1
    other[1] = torch.tensor([1, 1, 0, 0, 0, 0])
    call |= dict(decoder_input_ids=call["input_ids"] + 1, decoder_attention_mask=other)
    expected = call["attention_mask"] if at == ".encoder_attn.k_proj" else other
    assert mask_of(fsmt(), f"model.decoder.layers.1{at}", **call) == expected.T.tolist()


@pytest.mark.parametrize("rows", ROWS)
def test_padding_is_not_edited(rows: int) -> None:
    model, seen, call = xlnet(), [], call_of(rows)
    for hooks in ([], [SteeringController("transformer.layer.1", torch.ones(32), 3.0)]):
        with torch.no_grad(), attached(model, hooks):
            seen.append(model(**call).logits)
    assert torch.equal((seen[0] != seen[1]).any(-1), call["attention_mask"].bool())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (dict(tokens="last"), r"gives \(tokens, batch, features\), with shape"),
        (dict(strength="rows"), r"its rows are tokens and not samples|the part of each sample cannot be found"),
    ],
)
def test_what_needs_the_dimensions_is_refused(choice: dict[str, Any], why: str, rows: int) -> None:
    choice = {name: torch.ones(rows) if value == "rows" else value for name, value in choice.items()}
    model = xlnet()
    hook = SteeringController("transformer.layer.1", torch.ones(32), **choice)
    with torch.no_grad(), attached(model, hook), pytest.raises(HookError, match=why):
        model(**call_of(rows))


def test_what_the_model_gives_has_the_batch_first() -> None:
    call = call_of(6)
    for layer in ("lm_loss", "transformer"):
        assert mask_of(xlnet(), layer, **call) == call["attention_mask"].tolist()
        assert mask_of(xlnet(), layer, "last", **call) == torch.eye(6).int().tolist()


def test_a_class_that_inherits_is_known_too() -> None:
    layer = xlnet().get_submodule("transformer.layer.1")
    layer.__class__ = type("Kin", (type(layer),), {})
    assert axes_of("", layer, []) is Axes.TOKENS_FIRST


def test_a_mask_of_other_tokens_is_laid_neither_way() -> None:
    net, hook = nn.Sequential(nn.LSTM(4, 8)), ActivationStatistics("0", statistics=["mean"], histogram=False)
    with attached(net, hook) as layers:
        layers.begin_batch(None, {"attention_mask": torch.ones(2, 5)})
        with pytest.warns(UserWarning, match="which an attention mask does not fit, so every element counts"):
            net(torch.randn(6, 2, 4))


class Attends(nn.Module):
    """A cross-attention in the manner of torch's, with layers for its queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        return self.to_q(query) @ self.to_k(key).transpose(1, 2)


class Translates(nn.Module):
    def __init__(self, padding: Tensor | None) -> None:
        super().__init__()
        self.embed, self.attention, self.padding = nn.Embedding(64, 8), Attends(), padding

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        out: Tensor = self.attention(self.embed(decoder_input_ids), self.embed(input_ids), self.padding)
        return out


class Queries(Translates):
    """The same of one text, and of queries that are no text."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids, attention_mask, input_ids[:, :3] + 1)


def test_the_mask_of_keys_is_that_of_the_attention_or_else_of_the_encoder() -> None:
    call, own = call_of(2), torch.arange(6) > torch.tensor([[2], [3]])
    real, layer = call["attention_mask"].tolist(), "attention.to_k"
    text = dict(decoder_input_ids=call["input_ids"][:, :3] + 1)
    assert mask_of(Translates(own), layer, **call, **text) == (~own).int().tolist()
    assert mask_of(Translates(None), layer, **call, **text) == real
    assert mask_of(Queries(None), layer, **call) == [[1] * 6] * 2
    narrow = {**call, "attention_mask": call["attention_mask"][:, :5]}
    assert mask_of(Translates(None), layer, **narrow, **text) == [[1] * 6] * 2
