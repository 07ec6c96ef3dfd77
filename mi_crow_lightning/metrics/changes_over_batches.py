"""How much edits change activations over the batches of an evaluation: marks where batches end, exchanged once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.changes import Change, EffectSums, EffectValues, merge_changes, values_of
from mi_crow_lightning.metrics.collectives import Share, Shares, is_distributed

__all__ = ["BatchPoint", "ChangesOverBatches", "most_points"]

_MOST = 500
_MOST_ROWS = 32_000  # points times places: 1.8 MB a rank


class BatchPoint(NamedTuple):
    """The changes since the point before, over all ranks.

    Attributes:
        batch: the number of the last batch that it covers, counted from 1.
        values: one for each place; ``None`` where nothing was edited.
    """

    batch: int
    values: list[EffectValues | None]


def most_points(places: int) -> int:
    """Return how many points are kept at most, an even number: fewer where there are many places.

    Examples:
        >>> most_points(30), most_points(600)
        (500, 52)
    """
    return max(10, min(_MOST, _MOST_ROWS // max(places, 1)) // 2 * 2)


class ChangesOverBatches:
    """The sums of `EffectSums` in one stage, marked at the ends of batches.

    Each batch has a mark at first. When there are too many, every second one is dropped, and from then on marks are
    twice as far apart. A mark is a copy of the sums on their device: nothing waits for it, and no rank for another.

    Args:
        sums: the sums.
        stage: the stage.
        places: the number of places ``N``.

    Examples:
        >>> from mi_crow_lightning.metrics.collectives import exchange
        >>> sums = EffectSums(1, torch.device("cpu"))
        >>> over = ChangesOverBatches(sums, "predict", places=1)
        >>> for factor in (1.5, 3.0):
        ...     sums.add("predict", 0, torch.ones(2, 4), torch.ones(2, 4) * factor)
        ...     over.end_batch()
        >>> [(point.batch, point.values[0].max_ratio) for point in exchange([over.share()])[0]]
        [(1, 0.5), (2, 2.0)]
    """

    def __init__(self, sums: EffectSums, stage: str, places: int) -> None:
        self._sums, self._stage, self._places = sums, stage, places
        self._most = most_points(places)
        self._begin()

    def _begin(self) -> None:
        self._batches, self._every = 0, 1
        self._marks: list[Tensor | None] = []  # after `_every` batches, after twice as many, ...

    def end_batch(self) -> None:
        """End a batch."""
        self._batches += 1
        if self._batches % self._every:
            return
        self._marks.append(self._sums.mark(self._stage))
        if len(self._marks) == self._most:
            pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
            self._marks = [_later(*pair) for pair in pairs]
            self._every *= 2

    def share(self) -> Shares:
        """Share the points since the last call, for `exchange`, before the sums are shared.

        Ranks may have different numbers of batches, and marks at different distances. A point covers the batches of all
        ranks with the same numbers, at the largest of their distances. A rank that had fewer batches adds nothing to
        the later points.

        Returns:
            A list of `BatchPoint`.
        """
        batches, every = self._batches, self._every
        if batches % every:
            self._marks.append(self._sums.mark(self._stage))
        marks = self._marks
        self._begin()
        if is_distributed():
            mine = torch.tensor([batches, every], dtype=torch.float64)
            longest, widest = (yield Share(mine, lambda ranks: ranks.amax(0), more=True)).tolist()
        else:
            longest, widest = batches, every
        longest, widest = int(longest), int(widest)
        points = -(-longest // widest)
        if not points:
            return []
        rows = yield Share(self._parts(marks, widest // every, points), merge_changes)
        ends = [min(widest * (point + 1), longest) for point in range(points)]
        return [BatchPoint(end, list(map(values_of, row))) for end, row in zip(ends, rows.tolist(), strict=True)]

    def _parts(self, marks: Sequence[Tensor | None], together: int, points: int) -> Tensor:
        """Return what was added between the marks, as many together as make a point: ``(points, N, 7)``."""
        known = next((mark for mark in marks if mark is not None), None)
        empty = torch.zeros(self._places, len(Change), dtype=torch.float64)
        empty = empty if known is None else empty.to(known)
        whole = torch.stack([empty, *(empty if mark is None else mark for mark in marks)])  # (marks + 1, N, 7)
        parts = whole.diff(dim=0)
        parts[..., Change.LARGEST] = whole[1:, :, Change.LARGEST]  # those are since the mark before as they are
        if together > 1:
            parts = torch.stack([merge_changes(some) for some in parts.split(together)])
        missing = points - len(parts)
        return torch.cat([parts, empty.expand(missing, -1, -1)]) if missing else parts


def _later(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the later of two marks, with the largest ratios of both."""
    if one is None or other is None:
        return other
    later = other.clone()
    torch.maximum(one[:, Change.LARGEST], other[:, Change.LARGEST], out=later[:, Change.LARGEST])
    return later
