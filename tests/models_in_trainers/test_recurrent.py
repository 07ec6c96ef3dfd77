"""Recurrent networks and torch's own transformer: where the tokens are, and where that is not known."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import MambaConfig, MambaForCausalLM

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, SteeringController
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Layers, Tokens
from mi_crow_lightning.vectors import ContrastDetector
from tests.hooks.positions.test_padding import Mask
from tests.models import CLASSES, VOCABULARY, class_token_data, loader, token_data, trainer
from tests.models_in_trainers.harness import (
    Runs,
    assert_steered,
    assert_watched,
    attention_mask,
    first_tensor,
    tells,
)

# What transformers 4 asks for in a pass with a state.
OLDER: dict[str, Any] = {}
if "cache_position" in inspect.signature(MambaForCausalLM.forward).parameters:
    OLDER["cache_position"] = torch.tensor([5])

RNNS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Reader(nn.Module):
    """Embeds tokens, reads them with a recurrent network, and classifies by the mean of its outputs."""

    def __init__(self, kind: str = "lstm", batch_first: bool = True, packed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.rnn = RNNS[kind](8, 8, num_layers=2, batch_first=batch_first, bidirectional=kind == "lstm")
        self.head = nn.LazyLinear(CLASSES)
        self.batch_first, self.packed = batch_first, packed
        self(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3))

    def forward(self, ids: Tensor, lengths_of: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x if self.batch_first else x.transpose(0, 1)
        if self.packed:
            x = pack_padded_sequence(x, lengths_of.sum(1).long(), self.batch_first, enforce_sorted=False)
        output, _ = self.rnn(x)
        if self.packed:
            output, _ = pad_packed_sequence(output, self.batch_first)
        logits: Tensor = self.head(output.sum(1 if self.batch_first else 0))
        return logits


def reader(**options: Any) -> Callable[[], Runs]:
    def call(model: Any, batch: Any) -> Tensor:
        logits: Tensor = model(batch["input_ids"], batch["attention_mask"])
        return logits

    return lambda: Runs(Reader(**options), lambda m, batch: cross_entropy(call(m, batch), batch["labels"]), call)


def texts(count: int = 10) -> list[dict[str, Tensor]]:
    """Token sequences padded on the right; no batch is as long as it is wide."""
    return [
        {name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in row.items()}
        for row in class_token_data(count)
    ]


@pytest.mark.documents("compatibility/rnn-lstm-gru/detectors")
@pytest.mark.parametrize("kind", RNNS)
def test_with_the_batch_first_padding_is_left_out_and_the_states_are_not_edited(kind: str) -> None:
    layers = ["model.rnn", "model.embed", "model.head"]
    assert_watched(reader(kind=kind), texts(), layers[:2], attention_mask)
    assert_steered(reader(kind=kind), texts(), "model.rnn", mask_of=attention_mask)


@pytest.mark.documents("compatibility/rnn-lstm-gru/controllers")
def test_tokens_are_chosen_along_the_second_dimension() -> None:
    seen = ActivationStatistics("model.rnn", tokens=Tokens(positions=[0, -1]), statistics=["mean"])
    watch = HookCallback(seen)
    trainer(watch).validate(reader()(), loader(texts(4)), verbose=False)
    # The network takes no mask, and says so: but the batch has one, so -1 is the last real token.
    module, batch = reader()(), next(iter(loader(texts(4))))
    output = module.model.rnn(module.model.embed(batch["input_ids"]))[0]
    ends = batch["attention_mask"].sum(1) - 1
    chosen = torch.cat([output[:, 0], output[torch.arange(4), ends]])
    (row,) = (row for row in watch.history() if row.name == "mean")
    assert row.value == pytest.approx(chosen.double().mean().item(), rel=1e-6)


CROSSWISE = r"'model.rnn' gives \(tokens, batch, features\), because batch_first=True is not set"


def across(batch: Any) -> Tensor:
    return attention_mask(batch).T


@pytest.mark.documents("compatibility/rnn-lstm-gru/detectors")
@pytest.mark.parametrize("first", [0, 3])
def test_with_the_time_first_padding_is_left_out_too(first: int) -> None:
    """Also in batches of four texts of four tokens, where the mask as it is would fit."""
    rows = [{name: tensor[first:] if tensor.dim() else tensor for name, tensor in row.items()} for row in texts(8)]
    assert_watched(reader(batch_first=False), rows, ["model.rnn"], across)
    assert_steered(reader(batch_first=False), rows, "model.rnn", mask_of=across)


@pytest.mark.documents("compatibility/rnn-lstm-gru/controllers")
@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (dict(tokens="last"), rf"tokens='last' needs an activation .*{CROSSWISE}, with shape \(7, 4, 16\)"),
        (dict(strength=torch.tensor([1.0])), rf"{CROSSWISE}, so the part of each sample cannot be found in its"),
        (dict(when=lambda x, ctx: torch.tensor([True])), rf"{CROSSWISE}, so the part of each sample"),
    ],
    ids=["tokens", "strength", "when"],
)
def test_with_the_time_first_what_needs_the_dimensions_is_refused(choice: dict[str, Any], says: str) -> None:
    hook = SteeringController("model.rnn", torch.ones(16), **choice)
    with pytest.raises(HookError, match=says):
        trainer(HookCallback(controllers=hook)).predict(reader(batch_first=False)(), loader(texts(4)))


def test_after_it_a_mask_that_lies_across_is_told() -> None:
    class Projected(Reader):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.embed, self.after = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8)

        def forward(self, ids: Tensor, lengths_of: Tensor) -> Tensor:
            out: Tensor = self.after(self.embed(ids.T)).sum(0)
            return out

    watch = HookCallback(ActivationStatistics("model.after"))
    module = Runs(Projected(), lambda m, batch: m(batch["input_ids"], None).sum(), lambda m, batch: None)
    with tells(r"'model.after': the batch's attention mask \(4, 7\) lies across \(7, 4, 8\), so every element counts"):
        trainer(watch).validate(module, loader(texts(4)), verbose=False)


def test_packed_sequences_hold_no_padding() -> None:
    def data_of(output: Any) -> Tensor:
        packed: PackedSequence = output[0]
        return packed.data

    make = reader(packed=True)
    assert_watched(make, texts(), ["model.rnn"], take=data_of)
    assert_steered(make, texts(), "model.rnn", take=data_of, put=lambda o, x: (o[0]._replace(data=x), *o[1:]))
    steer = FunctionController("model.rnn", torch.tanh, tokens="last")
    with pytest.raises(HookError, match="gives the tokens of a PackedSequence in one row, by time step, with shape"):
        trainer(HookCallback(controllers=steer)).predict(make(), loader(texts(4)))


def test_vectors_are_not_extracted_from_rows_that_are_no_samples() -> None:
    contrast = ContrastDetector("model.rnn", label="labels", classes=(0, 1), on_error="raise")
    data = [{**row, "labels": torch.tensor(i % 2)} for i, row in enumerate(texts(7))]  # seven texts of seven tokens
    with pytest.raises(HookError, match=f"{CROSSWISE}, so the part of each sample"):
        trainer(HookCallback(contrast)).predict(reader(batch_first=False)(), loader(data, 7))


# torch's own transformer, whose layers tell the order by their attention.


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
        self.stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stack(x)
        return out


@pytest.mark.parametrize("name", ["stack", "block:1", "block:1.self_attn", "block:0.linear1"])
def test_torchs_own_transformer_tells_which_dimension_is_first(name: str) -> None:
    x = torch.randn(5, 3, 8)
    for batch_first in (True, False):
        model = Encoder(batch_first).train()
        Layers(model).register_hook(name, FunctionController(name, lambda x: x + 1, tokens="last"))
        if batch_first:
            model(x)
        else:
            with pytest.raises(HookError, match=r"gives \(tokens, batch, features\), because batch_first=True is not"):
                model(x)


def test_an_unbatched_sequence_is_read_whole() -> None:
    rnn = nn.LSTM(2, 3)
    seen = ActivationStatistics("rnn", statistics=["mean"], histogram=False)
    model = nn.ModuleDict({"rnn": rnn})
    Layers(model).register_hook(None, seen)
    output = first_tensor(rnn(torch.randn(4, 2)))
    (reading,) = seen.readings()
    np.testing.assert_allclose(reading.value, output.double().mean().item(), rtol=1e-12)  # type: ignore[arg-type]


# State-space models: the cache does not say how many tokens are in it.


def mamba(**changes: Any) -> Any:
    torch.manual_seed(0)
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, **tokens, **changes)
    )
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.documents("compatibility/mamba/detectors")
def test_mamba_is_watched_and_steered_without_padding() -> None:
    def make() -> Runs:
        return Runs(
            mamba(use_cache=False),
            lambda m, batch: m(**batch, labels=batch["input_ids"]).loss,
            lambda m, batch: m(**batch).logits,
        )

    layers = ["model.backbone.layers.0", "model.backbone.layers.1", "model.backbone.layers.1.mixer"]
    assert_watched(make, token_data(8), layers, attention_mask)
    assert_steered(make, token_data(8), layers[0], mask_of=attention_mask)


IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
MASK = (IDS != 0).long()
WIDE = 5
CHOICES: dict[str, tuple[Any, Callable[[int, int, int], bool]]] = {
    # of column, place among the real ones, and length of the prompt: whether it is chosen
    "all": ("all", lambda column, place, length: True),
    "prompt": ("prompt", lambda column, place, length: column < WIDE),
    "generated": ("generated", lambda column, place, length: column >= WIDE),
    "places": (Tokens(positions=[0, 4, 5]), lambda column, place, length: place in (0, 4, 5)),
    "from_end": (Tokens(window=(-2, None)), lambda column, place, length: place >= length - 2),
}


@pytest.mark.documents("compatibility/mamba/controllers")
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("which", CHOICES)
def test_mamba_generates_and_tokens_are_counted_by_hand(which: str, cache: bool, beams: int) -> None:
    model, (tokens, chosen) = mamba().eval(), CHOICES[which]
    layers, mask = Layers(model), Mask("block:1")
    mask.tokens = Tokens.of(tokens)
    layers.register_hook(None, mask)
    for _ in range(2):  # a second text on the same model
        mask.calls.clear()
        model.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False, use_cache=cache, num_beams=beams
        )
        whole = []
        for row in MASK.repeat_interleave(beams, 0).tolist():
            real = row + [1] * 3
            places = np.cumsum(real) - 1
            whole.append(
                [int(r and chosen(c, int(p), sum(row))) for c, (r, p) in enumerate(zip(real, places, strict=True))]
            )
        ends = [WIDE, WIDE + 1, WIDE + 2, WIDE + 3]
        starts = [0, *ends[:-1]] if cache else [0] * 4
        expected = [[row[a:b] for row in whole] for a, b in zip(starts, ends, strict=True)]
        assert [call.int().tolist() for call in mask.calls] == expected


def test_steered_mamba_with_and_without_its_cache_says_the_same() -> None:
    def text(cache: bool, *hooks: Any) -> Tensor:
        model = mamba().eval()
        for hook in hooks:
            Layers(model).register_hook(None, hook)
        out: Tensor = model.generate(input_ids=IDS[1:], max_new_tokens=6, do_sample=False, use_cache=cache)
        return out

    def steer() -> SteeringController:
        return SteeringController("block:0", torch.linspace(-4, 4, 16), tokens="generated")

    assert torch.equal(text(True, steer()), text(False, steer()))
    assert not torch.equal(text(True), text(True, steer()))


@pytest.mark.documents("compatibility/mamba/controllers")
def test_a_loop_of_ones_own_with_a_state_cannot_tell_positions() -> None:
    model = mamba().eval()
    layers, mask = Layers(model), Mask("block:1", "generated")
    layers.register_hook(None, mask)
    with torch.no_grad():
        state = model(input_ids=IDS[1:], use_cache=True).cache_params
        with pytest.raises(
            HookError, match="a state that does not say how many tokens came before, so positions cannot"
        ):
            model(input_ids=IDS[1:, -1:], cache_params=state, use_cache=True, **OLDER)
        mask.tokens = Tokens("all")
        model(input_ids=IDS[1:, -1:], cache_params=state, use_cache=True, **OLDER)
