"""The histograms that were written, for figures of a run without a logger: those of a bounded number of steps."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from mi_crow_lightning.loggers.compact_reader import HistogramRow
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["STEPS", "HistogramHistory"]

STEPS = 100
"""The most steps of a stage whose histograms are kept."""


class _Kept(NamedTuple):
    layer: str
    name: str
    edges: tuple[float, ...]
    counts: array[float]


class _Step(NamedTuple):
    place: int  # among those of its stage
    step: int
    by_tag: dict[str, _Kept]


class HistogramHistory:
    """The histograms of at most `STEPS` steps of each stage, spread evenly over the whole run, and of the last step.

    A histogram of 65 bins takes about 700 bytes: 100 steps of 30 layers take 2 MB.

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> history = HistogramHistory()
        >>> for step in range(150):
        ...     counted = Histogram((0.0, 1.0), (2.0,), 0.5, 0.75, 2.0, 1.25, 0.8125)
        ...     history.add("train", step, [("activations/h.0", Reading("h.0", "histogram", counted))])
        >>> steps = [row.step for row in history.rows()]
        >>> steps[:3], steps[-2:], len(steps)
        ([0, 2, 4], [148, 149], 76)
    """

    def __init__(self) -> None:
        self._stages: dict[str, _OfStage] = {}

    def add(self, stage: str, step: int, readings: TaggedReadings) -> None:
        """Keep the histograms of one step; those of several dataloaders come one after the other."""
        by_tag = {
            tag: _Kept(reading.layer, reading.name, reading.value.edges, array("d", reading.value.counts))
            for tag, reading in readings
            if isinstance(reading.value, Histogram)
        }
        if by_tag:
            self._stages.setdefault(stage, _OfStage()).add(step, by_tag)

    def rows(self) -> list[HistogramRow]:
        """Return every histogram that was kept, by stage, in the order of writing."""
        return [
            HistogramRow(stage, step, tag, kept.layer, kept.name, kept.edges, tuple(kept.counts))
            for stage, of_stage in self._stages.items()
            for _, step, by_tag in of_stage.steps
            for tag, kept in by_tag.items()
        ]


class _OfStage:
    """The steps of one stage: every ``stride``-th of those that were added, and the last."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self._added = 0
        self._stride = 1

    def add(self, step: int, by_tag: dict[str, _Kept]) -> None:
        if self.steps and self.steps[-1].step == step:
            self.steps[-1].by_tag.update(by_tag)
            return
        if self.steps and self.steps[-1].place % self._stride:
            del self.steps[-1]  # it was only kept as the last
        self.steps.append(_Step(self._added, step, by_tag))
        self._added += 1
        if len(self.steps) > STEPS:
            self._stride *= 2
            *before, last = self.steps
            self.steps = [*(one for one in before if one.place % self._stride == 0), last]
