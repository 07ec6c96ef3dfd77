"""CausalLMModule in predict: its texts are those of `generate` called by hand, each prompt on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BatchEncoding, GenerationConfig

from mi_crow_lightning import CausalLMModule, Detector, HookCallback, LayerActivationDetector, Schedule, attached
from mi_crow_lightning.language_model import GeneratedText, TextCollator
from tests.callback.runs import OnEvent
from tests.language_model.tiny import KINDS, TEXTS, block_of, model_of, texts_loader, tokens
from tests.models import trainer
from tests.tiny_gpt2 import save_gpt2

NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NEW}


def by_hand(model: Any, text: str, end: int = 0, **options: Any) -> list[list[int]]:
    """The new tokens of one prompt without padding, each sequence up to its end."""
    ids = torch.tensor([tokens()(text)["input_ids"]])
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=303, **options)
    rows = [row[ids.shape[1] :] for row in made.tolist()]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def predicted(module: CausalLMModule, *callbacks: Any, data: Any = None) -> list[GeneratedText]:
    batches = trainer(*callbacks).predict(module, texts_loader() if data is None else data)
    return [text for batch in batches for text in batch]


def test_texts_are_those_of_each_prompt_on_its_own() -> None:
    encode = tokens()
    for kind in KINDS:
        model = model_of(kind)
        found = predicted(CausalLMModule(model, encode, generation=GREEDY))
        assert [text.token_ids for text in found] == [by_hand(model, text, **GREEDY)[0] for text in TEXTS]
        assert [(text.prompt, text.strength, text.sequence) for text in found] == [(t, None, 0) for t in TEXTS]
        assert [text.row for text in found] == [0, 1, 0, 1, 0]
        for text in found:
            whole = encode(text.prompt)["input_ids"] + text.token_ids
            assert text.prompt + text.text == encode.decode(whole, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_end_with_the_end_of_the_text(kind: str) -> None:
    """The end is a token that one row makes in the middle; the others go on, and that row is padded."""
    model = model_of(kind)
    full = [by_hand(model, text, **GREEDY)[0] for text in TEXTS[:2]]
    end = next(token for token in full[0][1:-1] if token not in full[1])
    expected = [by_hand(model, text, end, **GREEDY, eos_token_id=end)[0] for text in TEXTS[:2]]
    assert len(expected[0]) < NEW == len(expected[1])
    for ends in (end, [end, 302]):  # a model may have several
        options = {**GREEDY, "eos_token_id": ends}
        found = predicted(CausalLMModule(model, tokens(), generation=options), data=texts_loader(TEXTS[:2]))
        assert [text.token_ids for text in found] == expected
    model.generation_config.eos_token_id = end
    found = predicted(CausalLMModule(model, tokens(), generation=GREEDY), data=texts_loader(TEXTS[:2]))
    assert [text.token_ids for text in found] == expected


@pytest.mark.parametrize("pad", [None, 5])
def test_a_stop_string_ends_a_row_without_its_padding(pad: int | None) -> None:
    model, encode = model_of("llama"), tokens()
    full = [by_hand(model, text, **GREEDY)[0] for text in TEXTS[:2]]
    stop = next(i for i, token in enumerate(full[0][:-1]) if token not in full[1] and encode.decode([token]).isascii())
    options = {**GREEDY, "stop_strings": [encode.decode([full[0][stop]])], "pad_token_id": pad}
    found = predicted(CausalLMModule(model, encode, generation=options), data=texts_loader(TEXTS[:2]))
    assert found[0].token_ids == full[0][: stop + 1]
    assert found[1].token_ids[: stop + 1] == full[1][: stop + 1]


def test_a_padding_token_that_was_generated_is_kept() -> None:
    model = model_of("llama")
    expected = by_hand(model, TEXTS[0], **GREEDY)[0]
    options = {**GREEDY, "pad_token_id": expected[-1]}
    (found,) = predicted(CausalLMModule(model, tokens(), generation=options), data=texts_loader(TEXTS[:1]))
    assert found.token_ids == expected


@pytest.mark.parametrize("kind", KINDS)
def test_beams_and_their_sequences(kind: str) -> None:
    model = model_of(kind)
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    found = predicted(CausalLMModule(model, tokens(), generation=options))
    expected = [row for text in TEXTS for row in by_hand(model, text, **options)]
    assert [text.token_ids for text in found] == expected
    assert [(text.row, text.sequence) for text in found] == [
        (row, sequence) for rows in (2, 2, 1) for row in range(rows) for sequence in range(2)
    ]


def test_samples_are_those_of_generate_at_the_same_random_state() -> None:
    model, options = model_of("llama"), {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": NEW}
    batch = TextCollator(tokens())(TEXTS[:2])
    torch.manual_seed(3)
    made = model.generate(**batch, **options, pad_token_id=303)[:, batch["input_ids"].shape[1] :].tolist()
    seed = OnEvent("on_predict_batch_start", lambda *_: torch.manual_seed(3))
    found = predicted(CausalLMModule(model, tokens(), generation=options), seed, data=texts_loader(TEXTS[:2]))
    assert [text.token_ids for text in found] == [row[: row.index(0) + 1] if 0 in row else row for row in made]


@pytest.mark.parametrize(
    "generation",
    [
        GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=0),
        GenerationConfig(max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True),
        {**GREEDY, "return_dict_in_generate": True, "output_scores": True},
        {**GREEDY, "use_cache": False},
    ],
)
def test_any_generation_config(generation: Any) -> None:
    model = model_of("llama")
    found = predicted(CausalLMModule(model, tokens(), generation=generation))
    assert [text.token_ids for text in found] == [by_hand(model, text, **GREEDY)[0] for text in TEXTS]


def test_without_one_the_model_s_own_holds() -> None:
    model = model_of("llama")
    model.generation_config.update(max_new_tokens=3, do_sample=False)
    assert {len(text.token_ids) for text in predicted(CausalLMModule(model, tokens()))} == {3}
    found = predicted(CausalLMModule(model, tokens(), generation={"max_new_tokens": 4}))
    assert {len(text.token_ids) for text in found} == {4}


def test_a_folder_and_loaded_parts_give_the_same(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "gpt2")
    by_name = CausalLMModule(str(folder), generation=GREEDY)
    parts = CausalLMModule(by_name.model, by_name.tokenizer, generation=GREEDY)
    assert predicted(by_name) == predicted(parts)


def test_a_loader_of_tokens_gives_the_same_as_one_of_texts() -> None:
    module = CausalLMModule(model_of("gpt2"), tokens(), generation=GREEDY)
    data = DataLoader(TEXTS, batch_size=2, collate_fn=TextCollator(tokens()))  # type: ignore[arg-type]
    assert predicted(module, data=data) == predicted(module)


def test_without_a_tokenizer_there_are_tokens_only() -> None:
    model, batch = model_of("llama"), TextCollator(tokens())(TEXTS[:2])
    found = predicted(CausalLMModule(model, generation={**GREEDY, "pad_token_id": 303}), data=DataLoader([batch], None))
    assert [text.token_ids for text in found] == [by_hand(model, text, **GREEDY)[0] for text in TEXTS[:2]]
    assert {(text.prompt, text.text) for text in found} == {(None, None)}


def test_a_continuation_keeps_the_space_it_begins_with() -> None:
    """Decoded alone, tokens of a sentencepiece model lose it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "▁rain": 1, "▁fell": 2, "▁.": 3}, unk_token="<pad>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    encode = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    assert encode.decode([2]) == "fell"

    class Next(nn.Module):
        def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
            return torch.cat([input_ids, torch.tensor([[2, 3]])], 1)

    (found,) = predicted(CausalLMModule(Next(), encode), data=texts_loader(["rain"]))
    assert (found.prompt, found.text) == ("rain", " fell .")


def test_strengths_of_the_batch_are_told() -> None:
    module, batch = CausalLMModule(model_of("llama"), tokens(), generation=GREEDY), TextCollator(tokens())(TEXTS[:2])
    for strength, expected in (
        (torch.tensor([1.5, -2.0]), [1.5, -2.0]),
        (3, [3.0, 3.0]),
        (torch.tensor(4.0), [4.0] * 2),
    ):
        data = DataLoader([{**batch, "strength": strength}], batch_size=None)
        assert [text.strength for text in predicted(module, data=data)] == expected
    with pytest.raises(
        ValueError, match=r"batch\['strength'\] must be a number, or a tensor \(2,\) with one strength per row"
    ):
        predicted(module, data=DataLoader([{**batch, "strength": torch.ones(3)}], batch_size=None))
    with pytest.raises(ValueError, match=r"batch\['strength'\] holds strengths that are not finite: \[1.0, nan\]"):
        predicted(module, data=DataLoader([{**batch, "strength": torch.tensor([1, torch.nan])}], batch_size=None))


class SeesBatch(Detector):
    def __init__(self) -> None:
        super().__init__("block:0", schedule=Schedule(stages="predict"))
        self.batches: list[Any] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.batches.append(ctx.batch)


@pytest.mark.parametrize("kind", ["texts", "dict", "BatchEncoding"])
def test_hooks_see_the_batch_that_predict_step_is_given(kind: str) -> None:
    given: list[Any] = []

    class Noting(CausalLMModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedText]:
            given.append(batch)
            return super().predict_step(batch, batch_idx, dataloader_idx)

    encoded = TextCollator(tokens())(TEXTS)
    data = {
        "texts": lambda: texts_loader(batch_size=5),
        "dict": lambda: DataLoader([encoded], batch_size=None),
        "BatchEncoding": lambda: DataLoader([BatchEncoding(encoded)], batch_size=None),
    }[kind]()
    sees, module = SeesBatch(), Noting(model_of("llama"), tokens(), generation=GREEDY)
    trainer(HookCallback(sees)).predict(module, data)
    assert len(given) == 1 and len(sees.batches) == NEW
    assert all(batch is given[0] for batch in sees.batches)


# Wrong batches and models.


def test_prompts_padded_on_the_right_are_refused() -> None:
    data = DataLoader(TEXTS, batch_size=5, collate_fn=TextCollator(tokens(), padding_side="right"))  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        predicted(CausalLMModule(model_of("llama"), tokens(), generation=GREEDY), data=data)
    assert str(caught.value) == (
        "row 0 of the batch ends in padding (4 of 5 rows do), and generated tokens would follow it. Pad prompts on "
        "the left: give texts, or TextCollator(tokenizer), or set tokenizer.padding_side = 'left'"
    )


def test_prompts_of_one_length_may_come_from_a_tokenizer_that_pads_on_the_right() -> None:
    model = model_of("llama")
    data = DataLoader(TEXTS[:1], collate_fn=TextCollator(tokens(), padding_side="right"))  # type: ignore[arg-type]
    (found,) = predicted(CausalLMModule(model, tokens(), generation=GREEDY), data=data)
    assert found.token_ids == by_hand(model, TEXTS[0], **GREEDY)[0]


def test_a_model_that_does_not_generate() -> None:
    with pytest.raises(TypeError, match=r"Linear has no generate\(\): predict needs a model that generates"):
        predicted(CausalLMModule(nn.Linear(2, 2), tokens()))


def test_steering_is_that_of_the_prompt_alone() -> None:
    """The hooks of a HookCallback act in `generate` as CausalLMModule calls it."""
    from mi_crow_lightning import SteeringController

    model, vector = model_of("llama"), torch.randn(32, generator=torch.Generator().manual_seed(2))
    handle = block_of(model, 1).register_forward_hook(lambda module, args, output: output + 3.0 * vector)
    expected = [by_hand(model, text, **GREEDY)[0] for text in TEXTS]
    handle.remove()
    assert expected != [by_hand(model, text, **GREEDY)[0] for text in TEXTS]
    steer = HookCallback(controllers=SteeringController("block:1", vector, 3.0))
    assert [t.token_ids for t in predicted(CausalLMModule(model, tokens(), generation=GREEDY), steer)] == expected


# Without generation: only the model runs.


@pytest.mark.parametrize("kind", KINDS)
def test_predict_only_runs_the_model(kind: str) -> None:
    """The detector sees each prompt once, as in a plain call without padding; a model need not generate."""
    model, seen = model_of(kind), LayerActivationDetector("block:2", keep="all")
    module = CausalLMModule(model, tokens(), generation=False)
    (nothing,) = trainer(HookCallback(detectors=seen)).predict(module, texts_loader(TEXTS[:2]))
    assert nothing == []
    (found,) = seen.get_captured()
    for row, text in enumerate(TEXTS[:2]):
        ids = torch.tensor([tokens()(text)["input_ids"]])
        plain = LayerActivationDetector("block:2")
        with torch.no_grad(), attached(model, plain):
            model(input_ids=ids)
        torch.testing.assert_close(found[row, -ids.shape[1] :], plain.get_captured()[0], rtol=1e-4, atol=1e-5)


def test_without_generation_nothing_can_be_shown() -> None:
    with pytest.raises(ValueError, match="log_text=2 shows generated texts, and generation=False makes none"):
        CausalLMModule(model_of("llama"), tokens(), generation=False, log_text=2)


def test_a_checkpoint_keeps_that_nothing_is_generated() -> None:
    assert CausalLMModule(model_of("llama"), tokens(), generation=False).hparams["generation"] is False
