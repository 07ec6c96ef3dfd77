"""Every choice of tokens in every way of decoding, and the text that comes of it, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import FunctionController, Layers, SteeringController, Tokens
from tests.hooks.by_hand import CHOICES, Passes, Read, assert_counted_by_hand, chosen, endless, every_choice, prompts
from tests.hooks.decoders import NEW, PROMPT, mistral, steer_by_hand
from tests.models import WIDTH, gpt2, llama

DECODERS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (llama, "model.layers"),
    "gpt2": (gpt2, "transformer.h"),
    "mistral": (mistral, "model.layers"),
}


def draft(model: Any) -> Any:
    """A model that guesses what comes: often wrong, so that tokens are rejected and computed anew."""
    torch.manual_seed(1)
    guesser = type(model)(model.config)
    with torch.no_grad():
        for mine, other in zip(guesser.parameters(), model.parameters(), strict=True):
            mine.copy_(other + 0.02 * torch.randn_like(other))
    return endless(guesser)


WAYS: dict[str, tuple[Callable[[Any], dict[str, Any]], int, tuple[int, ...]]] = {
    # name: options, how many rows each prompt becomes, lengths of the prompts
    "greedy": (lambda model: {}, 1, (6, 3, 5)),
    "no cache": (lambda model: {"use_cache": False}, 1, (6, 3, 5)),
    "beams": (lambda model: {"num_beams": 3}, 3, (6, 3, 5)),
    "samples": (lambda model: {"do_sample": True, "num_return_sequences": 2}, 2, (6, 3, 5)),
    "static cache": (lambda model: {"cache_implementation": "static"}, 1, (6, 3, 5)),
    "chunks of 4": (lambda model: {"prefill_chunk_size": 4}, 1, (6, 3, 5)),
    "chunks of 1": (lambda model: {"prefill_chunk_size": 1}, 1, (6, 3, 5)),
    "assisted": (lambda model: {"assistant_model": draft(model)}, 1, (6,)),
    "prompt lookup": (lambda model: {"prompt_lookup_num_tokens": 2}, 1, (6,)),
    "one token": (lambda model: {}, 1, (1, 1)),
}


@pytest.mark.documents("compatibility/generate-with-its-caches-beams-and-samples/controllers")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_read_and_edited_tokens_are_those_counted_by_hand(side: str, way: str) -> None:
    options, copies, lengths = WAYS[way]
    model, batch = endless(llama()), prompts(side, lengths)
    reads, passes = every_choice(model), Passes(model.model)
    torch.manual_seed(0)
    model.generate(**batch, **{"do_sample": False, **options(model)}, max_new_tokens=NEW)
    assert len(passes.seen) > 1
    assert_counted_by_hand(reads, passes, batch["attention_mask"].repeat_interleave(copies, 0))


def test_prompts_of_other_lengths_on_the_same_model() -> None:
    model = endless(llama())
    reads, passes = every_choice(model), Passes(model.model)
    for lengths in ((3, 2), (7,), (2, 2, 1)):
        batch = prompts(lengths=lengths)
        model.generate(**batch, max_new_tokens=3, do_sample=False)
        assert_counted_by_hand(reads, passes, batch["attention_mask"])


def decoded_by_hand(model: Any, block: nn.Module, batch: dict[str, Tensor], name: str, change: Tensor) -> Any:
    """Greedy decoding that computes the whole sequence anew for each token."""
    ids, prompt, logits = batch["input_ids"], batch["attention_mask"], []
    for _ in range(NEW):
        handle = steer_by_hand(block, chosen(name, prompt, ids, 0, editing=True), change)
        mask = torch.cat([prompt, prompt.new_ones(len(ids), ids.shape[1] - PROMPT)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        handle.remove()
        logits.append(output.logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return ids, torch.stack(logits)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("kind", DECODERS)
def test_steered_text_is_that_of_an_edit_by_hand(kind: str, name: str) -> None:
    make, stack = DECODERS[kind]
    model, batch = endless(make()), prompts()
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    expected = decoded_by_hand(model, model.get_submodule(f"{stack}.1"), batch, name, 2.0 * vector)
    Layers(model).register_hook(None, SteeringController("block:1", vector, 2.0, tokens=CHOICES[name][0]))
    options: dict[str, Any] = dict(do_sample=False, return_dict_in_generate=True, output_logits=True)
    result = model.generate(**batch, max_new_tokens=NEW, **options)
    assert torch.equal(result.sequences, expected[0])
    torch.testing.assert_close(torch.stack(result.logits), expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_decoded_steered_text_is_that_of_an_edit_by_hand(way: str, name: str) -> None:
    """Against the same decoding without a cache, which sees the whole sequence in each pass, edited by hand."""
    options, copies, lengths = WAYS[way]
    # transformers 4 reads left-padded prompts in chunks a little differently.
    model, batch = endless(llama()), prompts(lengths=(6, 6) if "chunks" in way else lengths)
    prompt = batch["attention_mask"].repeat_interleave(copies, 0)
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    drawn = {"do_sample": False, **options(model), "max_new_tokens": NEW}
    alike = {
        key: drawn[key] for key in drawn if key in ("max_new_tokens", "do_sample", "num_beams", "num_return_sequences")
    }

    def steer(module: nn.Module, args: Any, output: Any) -> Any:
        ids, past = passes.seen[-1]
        assert past == 0
        return torch.where(chosen(name, prompt, ids, 0, editing=True)[..., None], output + 2.0 * vector, output)

    passes, handle = Passes(model.model), model.model.layers[1].register_forward_hook(steer)
    told = {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    expected = model.generate(**batch, **alike, **told, use_cache=False)
    handle.remove()
    Layers(model).register_hook(None, SteeringController("block:1", vector, 2.0, tokens=CHOICES[name][0]))
    torch.manual_seed(0)
    found = model.generate(**batch, **drawn, **told)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)


def test_a_second_turn_with_the_cache_of_the_first() -> None:
    """What generate is called with is the prompt, the tokens in the cache among it."""
    model, batch = endless(llama()), prompts()
    first_turn = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    more = torch.tensor([[7, 8], [9, 10], [11, 12]])
    ids = torch.cat([first_turn.sequences, more], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    passes, read = Passes(model.model), Read(Tokens(positions=[-1, 5]))
    Layers(model).register_hook(None, read)
    model.generate(input_ids=ids, attention_mask=mask, past_key_values=first_turn.past_key_values, max_new_tokens=3)
    assert passes.seen[0][0].shape[1] < ids.shape[1], "the cache was used"
    for (pass_ids, past), was_read in zip(passes.seen, read.seen, strict=True):
        for row in range(3):
            real = [*mask[row].tolist(), 1, 1, 1]
            expected = [sum(real[:c]) in (5, int(mask[row].sum()) - 1) for c in range(past, past + pass_ids.shape[1])]
            assert was_read[row].tolist() == expected


def test_decode_steps_are_counted() -> None:
    steps: list[int] = []
    model = endless(llama())
    Layers(model).register_hook(0, FunctionController(0, lambda x: x, tokens=Tokens(where=lambda x, ctx: note(x, ctx))))

    def note(x: Tensor, ctx: Any) -> Tensor:
        steps.append(ctx.decode_step)
        return torch.ones(x.shape[:2], dtype=torch.bool)

    for way in ({}, {"use_cache": False}):
        model.generate(**prompts(), max_new_tokens=3, do_sample=False, **way)
    model(**prompts())
    assert steps == [0, 1, 2, 0, 1, 2, 0]


def test_positions_from_the_end_of_a_prompt_in_chunks_need_its_mask() -> None:
    model = endless(llama())
    Layers(model).register_hook(None, Read(Tokens(positions=[-1])))
    ids = prompts(lengths=(6,))["input_ids"]
    with pytest.raises(HookError, match=r"generate\(\) was called without attention_mask, so positions from its end"):
        model.generate(ids, max_new_tokens=2, prefill_chunk_size=2)
