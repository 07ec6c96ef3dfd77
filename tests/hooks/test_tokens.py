"""Every choice of tokens in every way of decoding, and the text that comes of it, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mi_crow_lightning.errors import HookError, TokensUnknown
from mi_crow_lightning.hooks import Detector, FunctionController, Layers, SteeringController, Tokens
from mi_crow_lightning.hooks.tokens import AllOf, AnyOf, Not
from tests.hooks.by_hand import CHOICES, Passes, Read, assert_counted_by_hand, chosen, endless, every_choice, prompts
from tests.models import BLOCKS, VOCABULARY, WIDTH, bert, gpt2, llama

PROMPT, NEW = 6, 4
SIZES: dict[str, Any] = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=None)
    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS)
    return MistralForCausalLM(MistralConfig(**SIZES, **sizes, **heads))


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=3, num_heads=4)
    return T5ForConditionalGeneration(T5Config(**SIZES, **sizes, decoder_start_token_id=0, dropout_rate=0.0))


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64)
    ends = dict(decoder_start_token_id=2, forced_eos_token_id=None)
    return BartForConditionalGeneration(BartConfig(**SIZES, **sizes, **heads, **ends))


DECODERS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (llama, "model.layers"),
    "gpt2": (gpt2, "transformer.h"),
    "mistral": (mistral, "model.layers"),
}


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


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


def steer_by_hand(block: nn.Module, mask: Tensor, change: Tensor) -> Any:
    def steer(module: nn.Module, args: Any, output: Any) -> Any:
        x = first(output)
        x = torch.where(mask[..., None], x + change, x)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    return block.register_forward_hook(steer)


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
    with pytest.raises(
        HookError, match=r"'encoder.block.1': the layer sees the tokens of an encoder, which are never generated"
    ):
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


LENGTHS = ((3, 4), (7,), (1, 2, 4))  # of the texts packed in each row


def packed() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 7), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "position_ids": torch.tensor([[p for n in row for p in range(n)] for row in LENGTHS])}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("editing", [True, False])
def test_packed_texts_are_counted_each(name: str, editing: bool) -> None:
    """As if each text were a row of its own."""
    batch, model = packed(), llama().train()
    masks: list[Tensor] = []

    class Choose(Detector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            mask = CHOICES[name][0].mask(x, ctx, editing=editing)
            masks.append(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)

    Layers(model).register_hook("block:1", Choose())
    model(**batch)
    expected = [
        [
            flag
            for text in row_ids.split(list(lengths))
            for flag in chosen(name, torch.ones(1, len(text)), text[None], 0, editing)[0].tolist()
        ]
        for row_ids, lengths in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    assert masks[0].tolist() == expected


def test_position_ids_of_padded_rows_are_no_packing() -> None:
    batch = prompts()
    read = Read(Tokens(positions=[-1, 0]))
    model = llama().eval()
    Layers(model).register_hook(None, read)
    for fill in (0, 1):
        positions = (batch["attention_mask"].cumsum(1) - 1).masked_fill(batch["attention_mask"] == 0, fill)
        model(**batch, position_ids=positions)
        assert read.seen.pop().int().tolist() == [[1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]]


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


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"which": "all", "ids": {3}}, ValueError, r"not which and ids: join two choices by & or \|"),
        ({"positions": []}, ValueError, r"positions=\[\] must be integers, at least one"),
        ({"positions": [1.5]}, ValueError, r"positions=\[1.5\] must be integers"),
        ({"positions": "12"}, ValueError, r"positions='12' must be integers"),
        ({"ids": [True]}, ValueError, r"ids=\[True\] must be integers"),
        ({"window": (3,)}, ValueError, r"window=\(3,\) must be \(start, stop\)"),
        ({"window": (4, 4)}, ValueError, r"window=\(4, 4\) is empty: start must be before stop"),
        ({"window": (-1, -3)}, ValueError, r"window=\(-1, -3\) is empty"),
        ({"where": 3}, TypeError, r"where=3 must be a function \(x, ctx\) -> mask \(B, T\)"),
        ({"which": "some"}, ValueError, "tokens='some' is not known"),
    ],
)
def test_wrong_choices_are_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokens(**given)


@pytest.mark.parametrize(
    "several",
    [torch.tensor([3, -1, 3]), np.array([3, -1], dtype=np.int16), [torch.tensor(3), np.int64(-1)], {-1, np.uint8(3)}],
)
def test_whole_numbers_of_torch_and_numpy_are_positions_and_ids(several: Any) -> None:
    for tokens in (Tokens(positions=several), Tokens(ids=several)):
        assert tokens.value == [-1, 3] and all(type(number) is int for number in tokens.value)


def test_the_ends_of_a_window_may_be_numpys() -> None:
    for window in [(np.int64(-8), None), (torch.tensor(-8), None), np.array([-8, -2]), torch.tensor([-8, -2])]:
        start, stop = Tokens(window=window).value
        assert (type(start), start) == (int, -8) and stop in (None, -2)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0]), np.array([True]), torch.tensor([[1]]), torch.tensor(1), [torch.tensor([1])]]
)
def test_other_tensors_and_arrays_are_no_positions(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"positions=.* must be integers, at least one"):
        Tokens(positions=wrong)


def test_choices_join_by_class_as_they_do_by_sign() -> None:
    one, other = Tokens("prompt"), Tokens(ids=[2])
    assert repr(AllOf(one, other)) == repr(AllOf(choices=[one, other])) == repr(one & other)
    assert repr(AnyOf("prompt", choices=[AllOf(other, "last")])) == repr(one | (other & Tokens("last")))
    assert repr(Not("prompt")) == repr(~one)
    for join in (AllOf, AnyOf):
        with pytest.raises(ValueError, match=rf"{join.__name__}\(\) needs at least one choice of tokens"):
            join()
    for wrong in (lambda: AllOf(one, 3), lambda: AnyOf(choices=[one, 3]), lambda: Not(3)):
        with pytest.raises(TypeError, match="tokens=3 must be a name such as 'generated', or Tokens"):
            wrong()


def test_choices_join_with_choices_only() -> None:
    with pytest.raises(TypeError, match=r"Tokens\('all'\) & 'last': both must be Tokens"):
        Tokens("all") & "last"  # type: ignore[operator]


@pytest.mark.parametrize(
    "join",
    [
        lambda: Tokens("generated") and Tokens(ids={13}),
        lambda: Tokens("generated") or Tokens(ids={13}),
        lambda: not (Tokens("generated") & Tokens(ids={13})),
        lambda: not ~Tokens("generated"),
    ],
)
def test_words_drop_no_choice(join: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"tokens join with & \| ~: `and`, `or` and `not` would silently drop one"):
        join()


def test_a_choice_says_what_it_is() -> None:
    joined = ~(Tokens("prompt") | Tokens(positions=[6])) & Tokens(window=[None, 3])
    assert repr(joined) == "~(Tokens('prompt') | Tokens(positions=[6])) & Tokens(window=(None, 3))"


@pytest.mark.parametrize("mask", [torch.ones(3, 6), torch.ones(3, 5, dtype=torch.bool), None])
def test_a_mask_of_the_users_is_checked(mask: Any) -> None:
    model = llama().eval()
    Layers(model).register_hook(None, Read(Tokens(where=lambda x, ctx: mask)))
    with pytest.raises(HookError, match=r"where= must return a torch.bool mask \(batch, tokens\) = \(3, 6\), not"):
        model(**prompts())


def test_ids_need_token_ids() -> None:
    model = llama().eval()
    Layers(model).register_hook(None, Read(Tokens(ids=[4])))
    with pytest.raises(
        HookError, match=r"'model.layers.2': .* \(3, 6\), and the model was called with no token IDs"
    ) as caught:
        model(inputs_embeds=torch.randn(3, 6, WIDTH))
    assert isinstance(caught.value.original_error, TokensUnknown)


class AnyMask(nn.Module):
    """A model that takes masks of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Any) -> Tensor:
        hidden: Tensor = self.block(input_ids[..., None].float())
        return hidden


def test_of_masks_for_several_kinds_of_attention_the_full_one_is_read() -> None:
    model, batch, read = AnyMask(), prompts(), Read(Tokens("all"), "block")
    Layers(model).register_hook(None, read)
    masks = {"sliding_attention": None, "full_attention": batch["attention_mask"]}
    model(batch["input_ids"], masks)
    assert torch.equal(read.seen[0], batch["attention_mask"].bool())


def test_a_mask_that_cannot_be_read_is_refused() -> None:
    model = AnyMask()
    Layers(model).register_hook(None, Read(Tokens("all"), "block"))
    with pytest.raises(HookError, match="was called with is a set, of which padding cannot be told"):
        model(prompts()["input_ids"], set())
