"""What layers return, in every container; modules used twice, tied weights, and models called with embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Tokens
from tests.callback.runs import assert_bit_equal
from tests.models import (
    CLASSES,
    VOCABULARY,
    WIDTH,
    Module,
    bert,
    class_token_data,
    llama,
    loader,
    token_data,
    trainer,
    vector_data,
)
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched, attention_mask, edit, fitted

# Containers.


class Pair(NamedTuple):
    count: int
    states: Tensor


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], Callable[[Any, Tensor], Any]]] = {
    # how a layer wraps its activation, how it is taken out, how an edited one is put back
    "tensor": (lambda x: x, lambda o: o, lambda o, x: x),
    "tuple": (lambda x: (x, x + 1), lambda o: o[0], lambda o, x: (x, o[1])),
    "list": (lambda x: [None, x], lambda o: o[1], lambda o, x: [None, x]),
    "loss_first": (lambda x: (x.sum(), x), lambda o: o[1], lambda o, x: (o[0], x)),
    "dict": (lambda x: {"ids": torch.ones(1).long(), "x": x}, lambda o: o["x"], lambda o, x: {**o, "x": x}),
    "preferred": (lambda x: {"loss": x + 1, "logits": x}, lambda o: o["logits"], lambda o, x: {**o, "logits": x}),
    "nested": (lambda x: {"a": [(None, x)]}, lambda o: o["a"][0][1], lambda o, x: {"a": [(None, x)]}),
    "named_tuple": (lambda x: Pair(3, x), lambda o: o.states, lambda o, x: o._replace(states=x)),
    "model_output": (
        lambda x: BaseModelOutput(last_hidden_state=x, hidden_states=(x + 1, x)),
        lambda o: o.last_hidden_state,
        lambda o, x: BaseModelOutput(last_hidden_state=x, hidden_states=o.hidden_states),
    ),
}


class Wraps(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return CONTAINERS[self.kind][0](self.linear(x))


class Unwraps(nn.Module):
    """Reads what its layer returned: a container of another type would break it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head, self.kind = Wraps(kind), nn.Linear(8, CLASSES), kind

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x)
        assert type(output) is type(CONTAINERS[self.kind][0](x))
        logits: Tensor = self.head(CONTAINERS[self.kind][1](output))
        return logits


@pytest.mark.documents(
    "compatibility/outputs-in-tuples-dicts-modeloutput-s/detectors",
    "compatibility/outputs-in-tuples-dicts-modeloutput-s/controllers",
)
@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_activation_is_found_in_every_container(kind: str) -> None:
    def make() -> Runs:
        return Runs(Unwraps(kind), lambda m, batch: cross_entropy(m(batch[0]), batch[1]), lambda m, batch: m(batch[0]))

    _, take, put = CONTAINERS[kind]
    assert_watched(make, vector_data(8), ["model.layer"], take=take)
    assert_steered(make, vector_data(8), "model.layer", take=take, put=put)


@dataclass
class Opaque:
    x: Tensor


@pytest.mark.documents("compatibility/outputs-in-tuples-dicts-modeloutput-s/controllers")
def test_an_opaque_output_is_refused_with_what_it_is() -> None:
    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()
            self.layer.forward = lambda x: Opaque(x)  # type: ignore[method-assign,assignment]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x).x
            return out

    module = Runs(Hides(), lambda m, batch: m(batch[0]).sum(), lambda m, batch: m(batch[0]))
    watch = HookCallback(controllers=FunctionController("model.layer", edit))
    with pytest.raises(HookError, match="the layer's output holds no tensor: it is an empty or opaque Opaque"):
        trainer(watch).predict(module, loader(vector_data(4)))


# One module used twice.


class Twice(nn.Module):
    """One layer that is called twice, and that has two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return logits


def twice() -> Runs:
    return Runs(Twice(), lambda m, batch: cross_entropy(m(batch[0]), batch[1]), lambda m, batch: m(batch[0]))


@pytest.mark.documents("compatibility/a-module-used-twice-tied-weights/detectors")
def test_a_module_used_twice_is_one_layer_and_both_calls_count() -> None:
    assert_watched(twice, vector_data(8), ["model.first"])
    assert_steered(twice, vector_data(8), "model.first")
    first, second = (HookCallback(ActivationStatistics(f"model.{name}")) for name in ("first", "second"))
    for callback in (first, second):
        fitted(twice, vector_data(8), callback)
    assert first.history() == second.history() != []
    assert {row.layer for row in second.history()} == {"model.first"}


def t5() -> Any:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=16, num_layers=2, num_heads=4, dropout_rate=0.1)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, use_cache=False, decoder_start_token_id=0, **sizes)
    )


def bart() -> Any:
    torch.manual_seed(0)
    stacks = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 16))
    }
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY, d_model=WIDTH, use_cache=False, max_position_embeddings=32, **stacks, **tokens
        )
    )


def translations(count: int = 8) -> list[dict[str, Tensor]]:
    """As many tokens on each side, padded on different sides."""
    return [
        {
            **row,
            "decoder_input_ids": row["input_ids"].flip(0),
            "decoder_attention_mask": row["attention_mask"].flip(0),
            "labels": row["input_ids"],
        }
        for row in token_data(count)
    ]


def both_sides(batch: Any) -> list[Tensor]:
    return [batch["attention_mask"].bool(), batch["decoder_attention_mask"].bool()]


class Side(nn.Module):
    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.embed(input_ids) * attention_mask[..., None]
        return states


class BothSides(nn.Module):
    """Two readers of one embedding, which also has a name of its own: as T5 was until transformers 5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Embedding(VOCABULARY, 8)
        self.encoder, self.decoder = Side(self.shared), Side(self.shared)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor
    ) -> Tensor:
        return self.encoder(input_ids, attention_mask).sum(1) - self.decoder(
            decoder_input_ids, decoder_attention_mask
        ).sum(1)


@pytest.mark.documents("compatibility/a-module-used-twice-tied-weights/controllers")
@pytest.mark.parametrize("name", ["shared", "encoder.embed", "decoder.embed"])
def test_an_embedding_shared_by_both_sides_follows_the_side_that_calls_it(name: str) -> None:
    def call(m: Any, batch: Any) -> Any:
        return m(**{key: value for key, value in batch.items() if key != "labels"})

    module = Runs(BothSides(), lambda m, batch: call(m, batch).sum(), call)
    batch, calls = next(iter(loader(translations(4)))), []
    watch = HookCallback(ActivationStatistics(f"model.{name}", statistics=["mean"], histogram=False))
    handle = module.model.shared.register_forward_hook(lambda m, a, output: calls.append(output.detach()))
    trainer(watch).validate(module, loader(translations(4)), verbose=False)
    handle.remove()
    assert len(calls) == 2
    (mean,) = (row.value for row in watch.history())
    by_hand = torch.cat([x[mask] for x, mask in zip(calls, both_sides(batch), strict=True)]).double().mean().item()
    assert mean == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.documents("compatibility/encoder-decoders/detectors")
@pytest.mark.parametrize("make", [t5, bart])
def test_the_head_of_an_encoder_decoder_leaves_the_decoders_padding_out(make: Any) -> None:
    def module() -> Runs:
        return Runs(make(), lambda m, batch: m(**batch).loss, lambda m, batch: m(**batch).logits)

    assert_watched(module, translations(), ["model.lm_head"], lambda batch: both_sides(batch)[1])
    assert_steered(module, translations(), "model.lm_head", mask_of=lambda batch: both_sides(batch)[1])


@pytest.mark.documents("compatibility/a-module-used-twice-tied-weights/detectors")
def test_tied_embedding_and_head_are_two_layers() -> None:
    def tied() -> Runs:
        model = llama(use_cache=False, tie_word_embeddings=True)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        return Runs(model, lambda m, b: m(**b, labels=b["input_ids"]).loss, lambda m, b: m(**b).logits)

    assert_watched(tied, token_data(8), ["model.model.embed_tokens", "model.lm_head"], attention_mask)
    for layer in ("model.model.embed_tokens", "model.lm_head"):
        assert_steered(tied, token_data(8), layer, mask_of=attention_mask)


# Encoders, and embeddings in place of token IDs.


def test_an_encoder_with_a_classifier() -> None:
    def make() -> Runs:
        return Runs(bert(), lambda m, batch: m(**batch).loss, lambda m, batch: m(**batch).logits)

    assert_watched(make, class_token_data(8), ["model.bert.encoder.layer.1", "model.bert.embeddings"], attention_mask)
    assert_watched(make, class_token_data(8), ["model.bert.pooler", "model.classifier"])
    assert_steered(make, class_token_data(8), "model.bert.encoder.layer.1", mask_of=attention_mask)
    assert_steered(make, class_token_data(8), "model.bert.pooler")


def embedded(model: Any, batch: Any) -> dict[str, Any]:
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    return {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}


def test_embeddings_are_watched_and_steered_as_token_ids_are() -> None:
    def make() -> Runs:
        return Runs(
            llama(use_cache=False),
            lambda m, batch: m(**embedded(m, batch), labels=batch["input_ids"]).loss,
            lambda m, batch: m(**embedded(m, batch)).logits,
        )

    layers = ["model.model.layers.1", "model.model.layers.2.mlp", "model.lm_head"]
    assert_watched(make, token_data(8), layers, attention_mask)
    assert_steered(make, token_data(8), layers[0], mask_of=attention_mask)
    by_ids, by_embeddings = (HookCallback(ActivationStatistics("block:1")) for _ in range(2))
    fitted(lambda: Module(llama(use_cache=False)), token_data(8), by_ids)
    fitted(make, token_data(8), by_embeddings)
    assert by_ids.history() == by_embeddings.history() != []


def test_generating_from_embeddings_knows_the_prompt() -> None:
    def generate(model: Any, batch: Any) -> Tensor:
        text: Tensor = model.generate(**embedded(model, batch), max_new_tokens=3, do_sample=False)
        return text

    def steered(tokens: Any, predict: Any) -> Any:
        module = Runs(llama(), lambda m, batch: m(**batch).loss, predict)
        callback = HookCallback(controllers=FunctionController("block:1", edit, tokens=tokens))
        return trainer(callback).predict(module, loader(token_data(4)))

    for tokens in ("generated", "prompt", "last", Tokens(positions=[0, -1])):
        by_ids = steered(tokens, lambda m, b: m.generate(**b, max_new_tokens=3, do_sample=False)[:, -3:])
        assert_bit_equal(by_ids, steered(tokens, generate))
    with pytest.raises(
        HookError,
        match=r"need the layer's token IDs .*, and the model was called with no token IDs: choose by position",
    ):
        steered(Tokens(ids={5}), generate)
