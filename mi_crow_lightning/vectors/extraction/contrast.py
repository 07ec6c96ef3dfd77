"""Two classes of samples, batch by batch: some to extract directions from, others to score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.metrics.separability import Separability
from mi_crow_lightning.vectors.extraction.held_out import HeldOut
from mi_crow_lightning.vectors.extraction.labels import BatchFacts
from mi_crow_lightning.vectors.extraction.layer_moments import Extraction
from mi_crow_lightning.vectors.extraction.massive import warn_of_one_channel
from mi_crow_lightning.vectors.extraction.row_means import RowMeans

__all__ = ["Contrast"]


class Contrast:
    """Samples of two classes that a stage has seen so far, and the results of the last finished stages.

    Args:
        method: the directions that held-out samples are projected on, one of `METHODS`.
        **kept: what `Extraction` keeps, see its arguments.

    Attributes:
        extraction: the last finished extraction; ``None`` before the first.
        scores: how well it separates held-out samples; empty until some were scored.
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
        """Forget what an interrupted stage has seen, and keep the results of finished stages."""
        self._batch = self._extracting = self._scoring = None

    def begin_batch(self, facts: BatchFacts, held_out: bool) -> None:
        """Begin a batch, and end the one before.

        Args:
            facts: its labels and pairs.
            held_out: whether to score its samples, which needs a finished extraction.
        """
        self._end_batch()
        self._batch, self._held_out = RowMeans(facts), held_out

    def add(self, layer: str, x: Tensor, mask: Tensor | None) -> None:
        """Add one pass of the running batch at one layer; see `RowMeans.add`."""
        assert self._batch is not None, "begin_batch comes first"
        self._batch.add(layer, x, mask)

    def _end_batch(self) -> None:
        """Hand on the samples of a batch, which are complete only after all of its passes."""
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
        """Join what all ranks have seen; every rank must call this.

        Args:
            layers: names of all watched layers, in order.
            device: where collectives run.

        Returns:
            The extraction, which is ``self.extraction`` from now on; ``None`` if nothing was seen.

        Raises:
            ValueError: a label was of neither class, a class is missing, or the method needs what was not kept.
        """
        self._end_batch()
        extraction, self._extracting = self._extracting or Extraction(**self._kept), None
        extraction.reduce(layers, device)
        if not extraction.moments:
            return None
        directions = extraction.directions(self.method)  # now, not in the first held-out pass: it waits for the device
        warn_of_one_channel(directions)
        self.extraction, self.scores = extraction, []
        return extraction

    def finish_scoring(self, layers: Sequence[str], device: torch.device) -> list[Separability] | None:
        """Join what all ranks have seen of held-out samples, and score it; every rank must call this.

        Returns:
            The separability of each layer, which is ``self.scores`` from now on; ``None`` if there are no directions
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
        """Keep only the results of finished stages in a copy."""
        return {**self.__dict__, "_batch": None, "_extracting": None, "_scoring": None}
