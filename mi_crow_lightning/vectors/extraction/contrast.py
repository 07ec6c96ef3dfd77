"""Two classes of samples, batch by batch: some to extract directions from, others to score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.metrics.separability import Separability
from mi_crow_lightning.vectors.extraction.directions import Extraction
from mi_crow_lightning.vectors.extraction.held_out import HeldOut
from mi_crow_lightning.vectors.extraction.labels import BatchFacts
from mi_crow_lightning.vectors.extraction.row_means import RowMeans

__all__ = ["Contrast"]


class Contrast:
    """What a stage has seen so far, and what the last finished stages gave.

    Args:
        method: what held-out samples are projected on, one of `METHODS`.
        **kept: what `Extraction` is to keep.

    Attributes:
        extraction: what the last finished extraction gave; ``None`` before.
        scores: how it separates held-out samples; empty before.
    """

    def __init__(self, method: str, **kept: Any) -> None:
        self.method = method
        self.extraction: Extraction | None = None
        self.scores: list[Separability] = []
        self._kept = kept
        self._batch: RowMeans | None = None
        self._extracting: Extraction | None = None
        self._scoring: HeldOut | None = None
        self._held_out = False

    @property
    def unfinished(self) -> bool:
        """Whether there are samples for an extraction that was not finished."""
        return self._extracting is not None or (self._batch is not None and not self._held_out)

    def begin_run(self) -> None:
        """Forget what a stage that was broken off has seen; what finished stages gave stays."""
        self._batch = self._extracting = self._scoring = None

    def begin_batch(self, facts: BatchFacts, held_out: bool) -> None:
        """A batch begins, and the one before is over.

        Args:
            facts: its labels and pairs.
            held_out: whether its samples are to be scored, which needs a finished extraction.
        """
        self._end_batch()
        self._batch, self._held_out = RowMeans(facts), held_out

    def add(self, layer: str, x: Tensor, mask: Tensor | None) -> None:
        """Add one pass of the running batch at one layer; see `RowMeans.add`."""
        assert self._batch is not None, "begin_batch comes first"
        self._batch.add(layer, x, mask)

    def _end_batch(self) -> None:
        """A batch may have several passes: its samples are complete when the next one begins."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        sink: HeldOut | Extraction
        if self._held_out:
            sink = self._scoring = self._scoring or self._new_scoring()
        else:
            sink = self._extracting = self._extracting or Extraction(**self._kept)
        for layer, rows in batch.rows().items():
            sink.add(layer, rows)

    def _new_scoring(self) -> HeldOut:
        assert self.extraction is not None, "held-out samples need directions"
        return HeldOut(self.extraction.directions(self.method))

    def finish_extraction(self, layers: Sequence[str], device: torch.device) -> Extraction | None:
        """Join what all ranks have seen; all of them must call this.

        Args:
            layers: all that are watched, in order.
            device: where collectives run.

        Returns:
            The extraction, which is ``self.extraction`` from now on; ``None`` if nothing was seen.

        Raises:
            ValueError: a label was of neither class, a class is missing, or the method needs what is not there.
        """
        self._end_batch()
        extraction, self._extracting = self._extracting or Extraction(**self._kept), None
        extraction.reduce(layers, device)
        if not extraction.moments:
            return None
        extraction.directions(self.method)  # now, not in the first held-out pass: it waits for the device
        self.extraction, self.scores = extraction, []
        return extraction

    def finish_scoring(self, layers: Sequence[str], device: torch.device) -> list[Separability] | None:
        """The same for held-out samples.

        Returns:
            The separability of each layer, which is ``self.scores`` from now on; ``None`` if there was no direction
            to score.

        Raises:
            ValueError: a label was of neither class, or a class is missing.
        """
        self._end_batch()
        if self.extraction is None:
            return None
        scoring, self._scoring = self._scoring or self._new_scoring(), None
        self.scores = scoring.finish(layers, device)
        return self.scores

    def __getstate__(self) -> dict[str, Any]:
        """A copy takes along what finished stages gave."""
        return {**self.__dict__, "_batch": None, "_extracting": None, "_scoring": None}
