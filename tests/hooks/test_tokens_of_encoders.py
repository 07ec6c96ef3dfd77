"""Choices of tokens in encoders, and in decoders beside one, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Layers, SteeringController, Tokens
from tests.hooks.by_hand import CHOICES, Passes, Read, assert_counted_by_hand, chosen, endless, every_choice, prompts
from tests.hooks.decoders import NEW, bart, steer_by_hand, t5
from tests.models import WIDTH, bert


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("make", [t5, bart])
def test_a_decoder_counts_its_own_tokens(make: Callable[[], Any], cached: bool) -> None:
    model, batch = endless(make()), prompts()
    reads = every_choice(model, "decoder.block.1" if make is t5 else "model.decoder.layers.1")
    passes = Passes(model.get_decoder())
    for _ in range(2):  # the second text of a model is like its first
        model.generate(**batch, do_sample=False, max_new_tokens=NEW, use_cache=cached)
        assert len(passes.seen) == NEW
        assert_counted_by_hand(reads, passes, torch.ones(3, 1, dtype=torch.long))


def test_steered_text_of_an_encoder_and_decoder_is_that_of_an_edit_by_hand() -> None:
    model, batch = endless(t5()), prompts()
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    ids, logits = torch.zeros(3, 1, dtype=torch.long), []
    for _ in range(NEW):
        edited = chosen("last", torch.ones(3, 1, dtype=torch.long), ids, 0, editing=True)
        handle = steer_by_hand(model.decoder.block[1], edited, 2.0 * vector)
        with torch.no_grad():
            logits.append(model(**batch, decoder_input_ids=ids, use_cache=False).logits[:, -1])
        handle.remove()
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    options: dict[str, Any] = dict(
        max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    plain = torch.stack(model.generate(**batch, **options).logits)
    Layers(model).register_hook("decoder.block.1", SteeringController(None, vector, 2.0, tokens="last"))
    steered = torch.stack(model.generate(**batch, **options).logits)
    torch.testing.assert_close(steered, torch.stack(logits), rtol=1e-4, atol=1e-4)
    assert (plain - steered).abs().max() > 0.01


def test_an_encoder_counts_its_own_tokens() -> None:
    model = endless(t5())
    read = Read(Tokens(positions=[0, -1]), "encoder.block.1")
    Layers(model).register_hook(None, read)
    model.generate(**prompts(), max_new_tokens=2, do_sample=False)
    assert read.seen[0].int().tolist() == [[1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]]


def test_an_encoders_tokens_are_never_generated() -> None:
    model = endless(t5())
    Layers(model).register_hook("encoder.block.1", Read(Tokens("generated")))
    with pytest.raises(HookError, match=r"'encoder.block.1': the layer sees the tokens of an encoder, which are never"):
        model.generate(**prompts(), max_new_tokens=2)


@pytest.mark.parametrize(
    ("make", "keys"),
    [(t5, "decoder.block.1.layer.1.EncDecAttention.k"), (bart, "model.decoder.layers.1.encoder_attn.k_proj")],
)
def test_keys_of_cross_attention_are_the_encoders_tokens(make: Callable[[], Any], keys: str) -> None:
    """Also where the decoder's tokens are as many."""
    model, batch = make().eval(), prompts()
    read, queries = (
        Read(Tokens("all"), keys),
        Read(Tokens("all"), keys[:-1] + "q" if make is t5 else keys.replace("k_", "q_")),
    )
    layers = Layers(model)
    layers.register_hook(None, read)
    layers.register_hook(None, queries)
    decoder_mask = prompts("right", (2, 6, 1))["attention_mask"]
    model(**batch, decoder_input_ids=batch["input_ids"], decoder_attention_mask=decoder_mask)
    assert torch.equal(read.seen[0], batch["attention_mask"].bool())
    assert torch.equal(queries.seen[0], decoder_mask.bool())


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "where"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_edits_of_an_encoder_alone(side: str, name: str) -> None:
    model, batch = bert().eval(), prompts(side)
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    handle = steer_by_hand(
        model.bert.encoder.layer[1], chosen(name, batch["attention_mask"], batch["input_ids"], 0, True), vector
    )
    expected = model(**batch).logits
    handle.remove()
    Layers(model).register_hook("block:1", SteeringController(None, vector, tokens=CHOICES[name][0]))
    assert torch.equal(model(**batch).logits, expected)
