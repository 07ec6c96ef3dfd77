"""The base of LightningModules that run a causal language model on texts, at one strength or at several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.language_model.sweep import checked_sweep, controllers_of, readers_of, refuse_unread
from mi_crow_lightning.language_model.swept_vectors import (
    SweptVector,
    checked_vectors,
    refuse_unsteered,
    vectors_of_rows,
)
from mi_crow_lightning.language_model.texts import TextCollator, are_texts

__all__ = ["TextModule"]


class TextModule(pl.LightningModule):
    """A LightningModule whose batches may be texts, and which may run each of them once per strength.

    Attributes:
        model: the language model.
        tokenizer: its tokenizer; ``None`` where batches are tokens.
        max_length: most tokens of a text; ``None`` for no limit.
    """

    model: nn.Module
    tokenizer: Any
    max_length: int | None
    _sweep: list[float] | None  # not by its name: torch would register a module
    _vectors: list[SweptVector] | None

    def __init__(self) -> None:
        super().__init__()
        self._readers: list[Hook] = []

    @property
    def sweep(self) -> list[float] | None:
        """The strengths that each prompt is run with. They may be changed between runs."""
        return self._sweep

    @sweep.setter
    def sweep(self, strengths: Sequence[float] | None) -> None:
        self._sweep = checked_sweep(strengths)

    @property
    def vectors(self) -> list[str] | None:
        """The names of the vectors that each prompt is run along. Vectors may be set between runs."""
        return None if self._vectors is None else [str(one.name) for one in self._vectors]

    @vectors.setter
    def vectors(self, vectors: Mapping[str, Any] | None) -> None:
        self._vectors = checked_vectors(vectors)

    @property
    def _along(self) -> list[SweptVector]:
        """The vectors of the sweep; one without a name for those that the controllers have."""
        return [SweptVector()] if self._vectors is None else self._vectors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model and return its output."""
        return self.model(*args, **kwargs)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn texts into tokens, padded on the left, before anything else sees the batch."""
        return TextCollator(self.tokenizer, max_length=self.max_length)(batch) if are_texts(batch) else batch

    def _find_readers(self) -> None:
        """Find the controllers that take their strength from the batch, and refuse a sweep if there are none."""
        self._readers = readers_of(self.trainer) if self.sweep is not None else []
        if self.sweep is not None:
            refuse_unread(self, self.sweep, self._readers)
        if self._vectors is not None:
            refuse_unsteered(self, self._readers)

    def _vectors_of(self, batch: Mapping[str, Any], swept: SweptVector) -> list[SweptVector]:
        """Return the vector of each row of a batch: the one that is swept, or the one that the batch names."""
        if swept.name is None:
            named = vectors_of_rows(batch, controllers_of(self.trainer))
            if named is not None:
                return named
        return [swept] * len(batch["input_ids"])

    def _refuse_unread(self, batch: Any) -> None:
        """Refuse a batch of a sweep in which no such controller is on."""
        if self.sweep is not None and self._readers:
            refuse_unread(self, self.sweep, self._readers, batch)
