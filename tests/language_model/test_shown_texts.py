"""`log_text`: the first texts of a predict run, steered beside unsteered, in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from torch.utils.data import DataLoader

from mi_crow_lightning import CausalLMModule, HookCallback, by_strength
from mi_crow_lightning.language_model import GeneratedText, TextCollator
from tests.callback.runs import told
from tests.language_model.test_sweep import steer
from tests.language_model.tiny import TEXTS, model_of, texts_loader, tokens
from tests.loggers.test_text_table import Cells, Table
from tests.models import trainer

# TensorBoard's plugins bring their own copy of html5lib; fits here have no validation data.
pytestmark = [
    pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

GREEDY = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None}


def module_of(log_text: int, sweep: Any = (0, 2, -0.5), tokenizer: bool = True, **generation: Any) -> CausalLMModule:
    options = {**GREEDY, **generation}
    return CausalLMModule(
        model_of("llama"), tokens() if tokenizer else None, generation=options, sweep=sweep, log_text=log_text
    )


def tables(logger: TensorBoardLogger) -> dict[str, tuple[int, list[list[str]]]]:
    """Step and rows of each table in the event file; each tag is written once."""
    logger.finalize("success")
    events, found = EventAccumulator(logger.log_dir).Reload(), {}
    for tag in (
        tag for tag in events.Tags()["tensors"] if tag.startswith("predict/")
    ):  # not the report, nor compact tensors
        (event,) = events.Tensors(tag)
        page = Cells(markdown_to_safe_html(event.tensor_proto.string_val[0]))
        found[tag.removesuffix("/text_summary")] = (event.step, legible(page.rows))
    return found


def legible(rows: list[list[str]]) -> list[list[str]]:
    """Without control characters and white space, which a random model's texts are full of."""
    return [["".join(c for c in cell if c.isprintable() and c not in " \ufffd") for cell in row] for row in rows]


def side_by_side(texts: list[GeneratedText]) -> list[list[str]]:
    rows = zip(*by_strength(texts).values(), strict=True)
    return [[str(row[0].prompt), *(str(text.text) for text in row)] for row in rows]


@pytest.mark.parametrize("prompts", [1, 3, 9])
def test_a_row_a_prompt_and_a_column_a_strength(tmp_path: Path, prompts: int) -> None:
    logger = TensorBoardLogger(tmp_path)
    batches = trainer(HookCallback(controllers=steer()), logger=logger).predict(module_of(prompts), texts_loader())
    rows = side_by_side([text for batch in batches for text in batch])[:prompts]
    assert len(rows) == min(prompts, len(TEXTS)) and rows[0][1] != rows[0][2]
    header = ["prompt", "strength 0", "strength 2", "strength -0.5"]
    assert tables(logger) == {"predict/texts": (0, legible([header, *rows]))}


def test_a_row_a_returned_sequence(tmp_path: Path) -> None:
    logger, module = TensorBoardLogger(tmp_path), module_of(2, num_beams=3, num_return_sequences=2)
    (batch,) = trainer(HookCallback(controllers=steer()), logger=logger).predict(module, texts_loader(TEXTS[:2]))
    _, rows = tables(logger)["predict/texts"]
    assert rows[1:] == legible(side_by_side(batch)) and len(rows) == 1 + 2 * 2


def test_without_a_sweep_a_row_a_text_and_its_strength_if_the_batch_tells(tmp_path: Path) -> None:
    encoded, module = TextCollator(tokens())(TEXTS[:2]), module_of(2, sweep=None)
    for batch, strengths in ((encoded, ["", ""]), ({**encoded, "strength": torch.tensor([2.0, -1.0])}, ["2", "-1"])):
        logger = TensorBoardLogger(tmp_path)
        (texts,) = trainer(logger=logger).predict(module, DataLoader([batch], batch_size=None))
        wanted = [[str(t.prompt), s, str(t.text)] for t, s in zip(texts, strengths, strict=True)]
        assert tables(logger)["predict/texts"][1] == legible([["prompt", "strength", "text"], *wanted])


def test_without_a_tokenizer_the_tokens_are_shown(tmp_path: Path) -> None:
    logger, table = TensorBoardLogger(tmp_path), Table()
    data = DataLoader([TextCollator(tokens())(TEXTS[:1])], batch_size=None)
    module = module_of(1, sweep=None, tokenizer=False)
    ((text,),) = trainer(logger=[logger, table_logger(tmp_path, table)]).predict(module, data)
    ((_, _, [row], _, _),) = table.calls
    assert row == ["", "", " ".join(map(str, text.token_ids))]


def table_logger(folder: Path, table: Table) -> CSVLogger:
    """A Lightning logger that takes text as `WandbLogger` does."""

    class Both(CSVLogger):
        def log_text(self, *args: Any, **named: Any) -> None:
            table.log_text(*args, **named)

    return Both(folder)


def test_each_dataloader_has_a_table_at_the_step_of_the_training_before(tmp_path: Path) -> None:
    logger, module = TensorBoardLogger(tmp_path), module_of(1, sweep=None)
    run = trainer(logger=logger, max_steps=3, max_epochs=None, limit_val_batches=0)
    run.fit(module, texts_loader())
    run.predict(module, [texts_loader(TEXTS[:2]), texts_loader(TEXTS[2:])])
    found = tables(logger)
    shown = {tag: (step, rows[1][0]) for tag, (step, rows) in found.items()}
    assert shown == {
        "predict/texts/dataloader_idx_0": (3, "Hello,world!"),
        "predict/texts/dataloader_idx_1": (3, "Hithere"),
    }


def test_a_logger_of_no_text_is_told(tmp_path: Path) -> None:
    module = module_of(2, sweep=None)
    with told("log_text=2 shows nothing: no logger of this Trainer takes text \\(it has none at all\\)"):
        trainer().predict(module, texts_loader())
    with told("log_text=2 shows nothing: no logger of this Trainer takes text \\(it has CSVLogger\\)"):
        trainer(logger=CSVLogger(tmp_path)).predict(module, texts_loader())


def test_a_run_shows_nothing_of_one_that_failed_before_it(tmp_path: Path) -> None:
    module = module_of(2, sweep=None)
    good = TextCollator(tokens())(TEXTS[:1])
    with pytest.raises(TypeError, match="the batch is a Tensor"):
        trainer(logger=TensorBoardLogger(tmp_path)).predict(module, DataLoader([good, torch.ones(1)], batch_size=None))
    logger = TensorBoardLogger(tmp_path)
    trainer(logger=logger).predict(module, texts_loader(["Hi"]))
    assert [row[0] for row in tables(logger)["predict/texts"][1]] == ["prompt", "Hi"]


def test_nothing_is_written_or_told_unless_asked_for(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer(logger=logger).predict(module_of(0, sweep=None), texts_loader())
    assert not tables(logger)
