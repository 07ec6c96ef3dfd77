"""Generated texts as rows for the tab in TensorBoard: their tokens, and which of them controllers changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.hooks.positions.touched import Touched
from mi_crow_lightning.language_model.generated import GeneratedText, prompts_of
from mi_crow_lightning.language_model.token_texts import token_texts
from mi_crow_lightning.loggers.text_rows import LONGEST, MOST_AFTER, MOST_BEFORE, TextRow

__all__ = ["marked_texts"]


def marked_texts(
    texts: Sequence[GeneratedText], sequences: Tensor, batch: Mapping[str, Any], touched: Touched, tokenizer: Any
) -> Iterator[TextRow]:
    """Yield a row for each text, without its stage, step and dataloader.

    Args:
        texts: the first texts of a batch, in the order of the sequences.
        sequences: ``(R, W)``, as ``generate`` returned them.
        batch: the prompts, see `records_of`.
        touched: the tokens that controllers changed.
        tokenizer: decodes the tokens; ``None`` to show their numbers.
    """
    prompts, width = prompts_of(batch), batch["input_ids"].shape[1]
    repeats = len(sequences) // len(prompts)
    mask = batch.get("attention_mask")
    real = torch.ones(len(prompts), width, dtype=torch.bool) if mask is None else mask.cpu() != 0
    for at, text in enumerate(texts):
        columns = [*real[at // repeats].nonzero().flatten().tolist(), *range(width, width + len(text.token_ids))]
        marks = {hook: _marks(of_hook[at].tolist(), columns) for hook, of_hook in touched.marks.items()}
        row = TextRow("predict", 0, None, text.row, text.prompt, text.strength, text.sequence, text.text)
        ids = [*prompts[at // repeats], *text.token_ids]
        yield _with_tokens(row, ids, len(ids) - len(text.token_ids), marks, tokenizer)._replace(
            unmarked=touched.unknown
        )


def _marks(of_row: list[bool], columns: list[int]) -> tuple[bool | None, ...]:
    """Return whether the token of each column was changed; the last of all columns was never read by the model."""
    return tuple(of_row[column] or (None if column == len(of_row) - 1 else False) for column in columns)


def _with_tokens(
    row: TextRow, ids: list[int], prompt: int, marks: dict[str, tuple[bool | None, ...]], tokenizer: Any
) -> TextRow:
    """Return a row with its tokens: of a long text those around the end of the prompt."""
    first, end = max(0, prompt - MOST_BEFORE), min(len(ids), prompt + MOST_AFTER)
    shown, special, joined = token_texts(tokenizer, ids[first:end])
    return row._replace(
        prompt=_end(row.prompt),
        text=_beginning(row.text),
        tokens=tuple(shown),
        prompt_tokens=prompt - first,
        special=tuple(special),
        joined=joined,
        touched={hook: of_hook[first:end] for hook, of_hook in marks.items()},
        left_out=(first, len(ids) - end),
    )


def _end(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"…{text[-LONGEST:]}"


def _beginning(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…"
