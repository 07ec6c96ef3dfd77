"""The first texts of a predict run, steered and unsteered side by side, for loggers that take text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import lightning.pytorch as pl

from mi_crow_lightning._warned import warn
from mi_crow_lightning.callback.touched import FollowedTokens, following_tokens
from mi_crow_lightning.language_model.generated import GeneratedText
from mi_crow_lightning.loggers.tensorboard import summary_writer
from mi_crow_lightning.loggers.text_rows import TextRow, write_texts
from mi_crow_lightning.loggers.text_table import takes_text, write_text_table
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["ShownTexts"]


class ShownTexts:
    """The texts of the first prompts of each dataloader, kept to be written as a table.

    Args:
        prompts: how many prompts to keep; 0 for none.
    """

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
        self._kept: dict[int, list[list[GeneratedText]]] = {}
        self._rows: dict[int, list[TextRow]] = {}  # the same texts, as data
        self._as_data = False

    def begin(self, trainer: pl.Trainer) -> None:
        """Begin a run, and warn when none of its loggers takes text."""
        self._kept, self._rows = {}, {}
        self._as_data = any(summary_writer(logger) is not None for logger in trainer.loggers)
        if self.prompts and not any(map(takes_text, trainer.loggers)) and trainer.is_global_zero:
            names = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none at all"
            warn(
                f"log_text={self.prompts} shows nothing: no logger of this Trainer takes text (it has {names}). "
                "TensorBoardLogger and WandbLogger do.",
                NothingSeenWarning,
                stacklevel=2,
            )

    @contextmanager
    def following(self, module: pl.LightningModule, dataloader_idx: int) -> Iterator[FollowedTokens | None]:
        """Follow which tokens controllers change while a batch is generated whose texts are kept as data."""
        if not self._as_data or len(self._kept.get(dataloader_idx, ())) >= self.prompts:
            yield None
            return
        with following_tokens(module.trainer) as followed:
            yield followed

    def add(self, texts: Sequence[GeneratedText], dataloader_idx: int) -> Sequence[GeneratedText]:
        """Keep the texts of a batch while there is room, and return those that are kept."""
        kept = self._kept.setdefault(dataloader_idx, [])
        more = [list(of_prompt) for _, of_prompt in groupby(texts, key=lambda text: text.row)]
        more = more[: max(0, self.prompts - len(kept))]
        kept += more
        return [text for of_prompt in more for text in of_prompt]

    def add_rows(self, texts: Iterable[TextRow], dataloader_idx: int) -> None:
        """Keep the same texts as data, whose prompts are numbered in their batch."""
        rows = self._rows.setdefault(dataloader_idx, [])
        before = 1 + rows[-1].row if rows else 0
        rows.extend(text._replace(row=before + text.row) for text in texts)

    def write(self, trainer: pl.Trainer, sweep: Sequence[float] | None) -> None:
        """Write the kept texts on rank 0, one table per dataloader.

        Args:
            trainer: the Trainer that has the loggers.
            sweep: the strengths, each a column of the table; ``None`` for one text per row.
        """
        if trainer.is_global_zero:
            for dataloader_idx, kept in self._kept.items():
                tag = f"predict/texts/dataloader_idx_{dataloader_idx}" if len(self._kept) > 1 else "predict/texts"
                rows = [row for of_prompt in kept for row in _rows(of_prompt, sweep)]
                if rows:
                    write_text_table(trainer.loggers, tag, _columns(sweep), rows, trainer.global_step)
            for dataloader_idx, kept_rows in self._rows.items():
                place = dataloader_idx if len(self._kept) > 1 else None
                placed = [row._replace(step=trainer.global_step, dataloader_idx=place) for row in kept_rows]
                write_texts(trainer.loggers, placed)
        self._kept, self._rows, self._as_data = {}, {}, False


def _columns(sweep: Sequence[float] | None) -> list[str]:
    texts = ["strength", "text"] if sweep is None else [f"strength {strength:g}" for strength in sweep]
    return ["prompt", *texts]


def _rows(of_prompt: Sequence[GeneratedText], sweep: Sequence[float] | None) -> list[list[str]]:
    """Return one row for each returned sequence."""
    if sweep is None:
        return [[_shown(t.prompt, []), _number(t.strength), _shown(t.text, t.token_ids)] for t in of_prompt]
    rows: dict[int, list[str]] = {}
    for text in of_prompt:  # in the order of the strengths
        row = rows.setdefault(text.sequence, [_shown(text.prompt, [])])
        row.append(_shown(text.text, text.token_ids))
    return list(rows.values())


def _shown(text: str | None, token_ids: Sequence[int]) -> str:
    """Return the text, or its tokens where there is no tokenizer."""
    return text if text is not None else " ".join(map(str, token_ids))


def _number(strength: float | None) -> str:
    return "" if strength is None else f"{strength:g}"
