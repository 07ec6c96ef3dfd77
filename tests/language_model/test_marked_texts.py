"""The tokens that controllers changed in shown texts, against hooks of the test's own that count columns themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mi_crow_lightning import CausalLMModule, Controller, FunctionController, HookCallback, SteeringController, Tokens
from mi_crow_lightning.hooks.positions.touched import Touched
from mi_crow_lightning.language_model import GeneratedText
from mi_crow_lightning.language_model.marked_texts import marked_texts
from mi_crow_lightning.language_model.token_texts import token_texts
from mi_crow_lightning.loggers import TextRow, read_texts
from mi_crow_lightning.loggers.text_rows import MOST_AFTER, MOST_BEFORE
from tests.callback.runs import told
from tests.language_model.tiny import TEXTS, block_of, model_of, texts_loader, tokens
from tests.models import WIDTH, trainer

V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
LAYER = "block:1"
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
Marks = tuple[bool | None, ...]


class Reference(pl.Callback):
    """Compares a layer's output before and after a controller, and counts the columns of each pass by itself."""

    def __init__(self, layer: nn.Module, model: nn.Module) -> None:
        self.layer, self.on = layer, False
        self.batches: list[list[list[Any]]] = []  # of each pass: first column, IDs, before, after
        layer.register_forward_hook(self._before)
        model.register_forward_pre_hook(self._called, with_kwargs=True)

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.handle, self.on = self.layer.register_forward_hook(self._after), True  # behind the controller's
        self.batches.append([])

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.handle.remove()
        self.on = False

    def _called(self, module: Any, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        if self.on:
            self.batches[-1].append([0 if cache is None else int(cache.get_seq_length()), kwargs["input_ids"].clone()])

    def _before(self, module: Any, args: Any, output: Any) -> None:
        if self.on:
            self.batches[-1][-1].append((output if isinstance(output, Tensor) else output[0]).clone())

    _after = _before

    def marks(self, batch: int, texts: list[GeneratedText], lengths: list[int]) -> list[Marks]:
        """Whether each token of the texts of a batch was changed, `lengths` of them being those of the prompt."""
        width = max(lengths)
        last = width + max(len(text.token_ids) for text in texts) - 1
        changed = torch.zeros(len(texts), last + 64, dtype=torch.bool)
        for first, ids, before, after in self.batches[batch]:
            for column in range(ids.shape[1]):
                here = (before[:, column] != after[:, column]).any(-1)
                for row, text in enumerate(texts):  # a draft that was rejected is another token
                    new = first + column - width
                    rejected = 0 <= new < len(text.token_ids) and int(ids[row, column]) != text.token_ids[new]
                    changed[row, first + column] |= here[row] and not rejected
        found = []
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            columns = range(width - length, width + len(text.token_ids))
            found.append(tuple(bool(changed[row, at]) or (None if at == last else False) for at in columns))
        return found


def predicted(
    folder: Path, controllers: Any, kind: str = "llama", log_text: int = 9, batch_size: int = 2, **options: Any
) -> tuple[list[TextRow], list[list[GeneratedText]], Reference]:
    generation = {**GREEDY, **options.pop("generation", {})}
    module = CausalLMModule(model_of(kind), tokens(), generation=generation, log_text=log_text, **options)
    reference = Reference(block_of(module.model, 1), module.model.base_model)
    logger = TensorBoardLogger(folder)
    run = trainer(HookCallback(controllers=controllers), reference, logger=logger)
    predictions: Any = run.predict(module, texts_loader(batch_size=batch_size))
    logger.finalize("success")
    return list(read_texts(logger.log_dir)), predictions, reference


def expected(predictions: list[list[GeneratedText]], reference: Reference) -> list[Marks]:
    found = []
    for batch, texts in enumerate(predictions):
        lengths = [len(tokens()(text.prompt)["input_ids"]) for text in texts]
        found += reference.marks(batch, texts, lengths)
    return found


def large(x: Tensor, ctx: Any) -> Tensor:
    return x[..., 0] > 0


CHOICES: dict[str, dict[str, Any]] = {
    "generated": {"tokens": "generated"},
    "last": {"tokens": "last"},
    "positions": {"tokens": Tokens(positions=[0, -1])},
    "generated on a condition": {"tokens": "generated", "when": large},
    "all and then some": {"tokens": "all", "when": large},
}
WAYS: dict[str, dict[str, Any]] = {
    "cache": {},
    "no cache": {"generation": {"use_cache": False}},
    "static cache": {"generation": {"cache_implementation": "static"}},
    "chunks of the prompt": {"generation": {"prefill_chunk_size": 3}},
    "sequences": {"generation": {"do_sample": True, "num_return_sequences": 2}},
    "ends": {"generation": {"do_sample": True, "temperature": 4.0, "eos_token_id": list(range(0, 300, 6))}},
    "lookup": {
        "generation": {"prompt_lookup_num_tokens": 3, "max_new_tokens": 14, "eos_token_id": 301},
        "batch_size": 1,
    },
    "sweep": {"sweep": [0, 2, -0.5]},
}


CASES = [("cache", choice) for choice in CHOICES] + [(way, "all and then some") for way in WAYS if way != "cache"]


@pytest.mark.parametrize(("way", "choice"), CASES)
def test_marks_are_the_tokens_that_were_changed(way: str, choice: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    strength = "batch" if way == "sweep" else 2.0
    steer = SteeringController(LAYER, V, strength, hook_id="steer", **CHOICES[choice])
    rows, predictions, reference = predicted(tmp_path, steer, **WAYS[way])
    texts = [text for batch in predictions for text in batch]
    wanted = expected(predictions, reference)
    assert [row.touched["steer"] for row in rows] == wanted
    assert {mark for marks in wanted for mark in marks} >= {True, False}
    assert all(not row.unmarked and row.joined and row.left_out == (0, 0) for row in rows)
    for row, text in zip(rows, texts, strict=True):
        assert (row.prompt, row.strength, row.text, row.sequence) == (*text[:2], text.text, text.sequence)
        shown = [token for at, token in enumerate(row.tokens) if at not in row.special]
        assert "".join(shown) == f"{text.prompt}{text.text}"
        assert len(row.tokens) == row.prompt_tokens + len(text.token_ids) == len(row.touched["steer"])
    numbers = [number for number, _ in groupby(row.row for row in rows)]
    assert numbers == list(range(len(TEXTS)))


def marks_of(rows: list[TextRow], hook: str) -> list[Marks]:
    return [row.touched[hook] for row in rows]


class Flat(Controller):
    """Edits whatever its layer gives, at every second token of each row."""

    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        tokens = ctx.facts.tokens
        x = x.clone()
        x.view(-1, tokens, x.shape[-1])[:, ::2] += 1.0
        return x


def test_layers_before_and_after_and_several_controllers_are_apart(tmp_path: Path) -> None:
    controllers = [
        SteeringController("block:0-3", V, tokens="generated", hook_id="all blocks"),
        SteeringController("block:1.mlp", V, tokens="generated", hook_type="pre_forward", hook_id="before"),
        Flat("block:2.attn", hook_id="flat"),
        FunctionController("model.lm_head", lambda x: x * 1.5, hook_id="head"),
        SteeringController("block:3", V, 0.0, hook_id="nothing"),
    ]
    rows, predictions, _ = predicted(tmp_path, controllers, batch_size=5)
    of_batch = [text for batch in predictions for text in batch]
    width = max(row.prompt_tokens for row in rows)
    for row, text in zip(rows, of_batch, strict=True):
        prompt, new = row.prompt_tokens, len(text.token_ids)
        steered = (*[False] * (prompt - 1), *[True] * new, None)
        assert row.touched["all blocks"] == row.touched["before"] == row.touched["head"] == steered
        assert row.touched["nothing"] == (*[False] * (prompt + new - 1), None)
        # Every second column of the prompt, its padding counted, and the one token of each step after it.
        columns = range(width - prompt, width)
        assert row.touched["flat"] == (*[column % 2 == 0 for column in columns], *[True] * (new - 1), None)


def test_beams_are_left_out_with_a_reason(tmp_path: Path) -> None:
    steer = SteeringController(LAYER, V, hook_id="steer")
    beams = {"num_beams": 2, "num_return_sequences": 2}
    rows, _, _ = predicted(tmp_path, steer, generation=beams, batch_size=5)
    assert all(row.touched == {} and "beam search" in row.unmarked["steer"] for row in rows) and len(rows) == 10


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
def test_there_are_no_marks_of_what_is_compiled_into_a_graph(tmp_path: Path) -> None:
    module = CausalLMModule(model_of("llama"), tokens(), generation=GREEDY, log_text=1)
    block_of(module.model, 1).compile(backend="eager")
    logger = TensorBoardLogger(tmp_path)
    layers = {"inside": "block:1.mlp", "outside": "block:1", "elsewhere": "block:2.mlp"}
    controllers: list[Any] = [SteeringController(layer, V, hook_id=name) for name, layer in layers.items()]
    called = [
        FunctionController("block:1.mlp", lambda x: x * 1.5, hook_id="function"),
        SteeringController("block:1.mlp", V, tokens="generated", hook_id="generated"),
    ]
    controllers += called
    trainer(HookCallback(controllers=controllers), logger=logger).predict(module, texts_loader(TEXTS[:1]))
    logger.finalize("success")
    (row,) = read_texts(logger.log_dir)
    assert row.unmarked == {"inside": "it is compiled into a graph"}
    everywhere = (*[True] * (len(row.tokens) - 1), None)
    after_prompt = (*[False] * (row.prompt_tokens - 1), *everywhere[row.prompt_tokens - 1 :])
    assert row.touched == {**dict.fromkeys(("outside", "elsewhere", "function"), everywhere), "generated": after_prompt}


def test_only_the_shown_prompts_are_followed_and_nothing_stays(tmp_path: Path) -> None:
    followed: list[bool] = []

    def noted(x: Tensor) -> Tensor:
        followed.append(watch._run.effects.listener is not None)  # type: ignore[union-attr]
        if len(followed) == fails_at:
            raise RuntimeError("an edit failed")
        return x + 1

    module = CausalLMModule(model_of("llama"), tokens(), generation=GREEDY, log_text=2)
    watch = HookCallback(controllers=FunctionController(LAYER, noted, hook_id="noted"))
    fails_at, logger = 0, TensorBoardLogger(tmp_path)
    shown: Any = trainer(watch, logger=logger).predict(module, texts_loader())
    assert followed == [True] * 6 + [False] * 12  # six passes a batch, of two prompts
    followed.clear()
    with told("log_text=2 shows nothing"):
        without: Any = trainer(watch).predict(module, texts_loader())
    assert followed == [False] * 18 and without == shown  # no logger takes them
    fails_at = 3
    followed.clear()
    with pytest.raises(Exception, match="an edit failed"):
        trainer(watch, logger=logger).predict(module, texts_loader())
    assert watch._run is None and followed == [True] * 3
    fails_at, module = 0, CausalLMModule(module.model, tokens(), generation=GREEDY)
    assert trainer(watch).predict(module, texts_loader()) == shown


def test_texts_of_each_dataloader_are_apart(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    module = CausalLMModule(model_of("llama"), tokens(), generation=GREEDY, log_text=3)
    trainer(logger=logger).predict(module, [texts_loader(TEXTS[:1]), texts_loader(TEXTS[1:])])
    logger.finalize("success")
    rows = list(read_texts(logger.log_dir))
    assert [(row.dataloader_idx, row.row, row.prompt) for row in rows] == [
        (0, 0, TEXTS[0]),
        *((1, at, text) for at, text in enumerate(TEXTS[1:4])),
    ]
    assert all(row.touched == row.unmarked == {} and row.stage == "predict" for row in rows)


def test_very_long_texts_are_cut_around_the_end_of_the_prompt() -> None:
    prompt, new = 700, 1300
    ids = torch.arange(prompt + new)[None] % 300
    text = GeneratedText("p" * 30_000, None, "t" * 30_000, ids[0, prompt:].tolist(), 0, 0)
    marks = (torch.arange(prompt + new) % 7 == 0)[None]
    (row,) = marked_texts([text], ids, {"input_ids": ids[:, :prompt]}, Touched({"steer": marks}, {}), None)
    assert row.left_out == (prompt - MOST_BEFORE, new - MOST_AFTER) == (200, 300)
    assert row.prompt_tokens == MOST_BEFORE and len(row.tokens) == MOST_BEFORE + MOST_AFTER
    assert row.touched["steer"] == tuple(marks[0, 200:1700].tolist()) and row.tokens[0] == "200"
    assert row.prompt is not None and row.text is not None
    assert row.prompt[:2] == "…p" and row.text[-2:] == "t…" and len(row.prompt) == len(row.text) == 20_001


@pytest.mark.parametrize(
    "text", ["Hello, world!", "naïve 日本語 🙂🙂!", "  two  spaces\n\tand a tab ", "", "<b>&amp;</b>"]
)
def test_texts_of_tokens_make_the_text(text: str) -> None:
    for tokenizer in (tokens(), words()):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        found = token_texts(tokenizer, ids)
        assert len(found.texts) == len(ids) and found.texts[-1] == tokenizer.eos_token
        assert found.special == [at for at, token in enumerate(ids) if token in tokenizer.all_special_ids]
        shown = [token for at, token in enumerate(found.texts) if at not in found.special]
        assert "".join(shown) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert found.joined


def words() -> Any:
    """Pieces with a mark for the space before them, as SentencePiece's: the first space of a text is left out."""
    pieces = ["<unk>", "</s>", "▁", "▁Hello", ",", "▁world", "!", "o"]
    made = Tokenizer(models.Unigram([(piece, -1.0 - at) for at, piece in enumerate(pieces)], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def test_pieces_that_follow_one_another_lose_no_space() -> None:
    ids = words()("Hello, world!", add_special_tokens=False)["input_ids"]
    assert token_texts(words(), ids) == (["Hello", ",", " world", "!"], [], True)
    assert token_texts(None, [5, 7]) == (["5", "7"], [], False)
