"""The numbers that were written, as a table: for runs without a logger, and for scripts that print a summary."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["History", "HistoryRow"]

_Keys: TypeAlias = tuple[tuple[str, str, str], ...]  # (tag, layer, name) of each number of a step


class HistoryRow(NamedTuple):
    """One number of one layer at one step.

    Attributes:
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        step: the position on the loggers' x axis.
        tag: the tag it was written under.
        layer: name of the layer.
        name: the name of the reading.
        value: the number.
    """

    stage: str
    step: int
    tag: str
    layer: str
    name: str
    value: float


class History:
    """The numbers of all written readings, without histograms: 8 bytes each.

    When there are more than ``size``, the stage that has most keeps every second of its steps from then on, those
    before included, later every fourth, and so on. So what is kept is spread evenly over the whole run. The last step
    of each stage is always kept.

    Args:
        size: the most numbers that are kept, but at least those of the last steps; ``None`` for all.

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> history = History(size=4)
        >>> for step in range(8):
        ...     _ = history.add("train", step, [("activations_mean/h.0", Reading("h.0", "mean", 0.5 * step))])
        >>> [(row.step, row.value) for row in history.rows()]
        [(0, 0.0), (4, 2.0), (7, 3.5)]
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._keys: dict[_Keys, _SharedKeys] = {}
        self._stages: dict[str, _OfStage] = {}
        self._written = 0

    def add(self, stage: str, step: int, readings: TaggedReadings) -> bool:
        """Keep the numbers of one step, and return whether others were left out for it."""
        keys, values = [], array("d")
        for tag, reading in readings:
            if not isinstance(reading.value, Histogram):
                keys.append((tag, reading.layer, reading.name))
                values.append(reading.value)
        shared = self._keys.setdefault(key := tuple(keys), _SharedKeys(key))
        shared.uses += 1
        of_stage = self._stages.setdefault(stage, _OfStage())
        self._let_go(of_stage.add(_Step(of_stage.added, self._written, step, shared, values)))
        self._written += 1
        return self._fit_into_size()

    def rows(self) -> list[HistoryRow]:
        """Return every number that was kept, in the order of writing."""
        steps = [(one.order, stage, one) for stage, of_stage in self._stages.items() for one in of_stage.steps]
        return [
            HistoryRow(stage, one.step, *key, value)
            for _, stage, one in sorted(steps, key=itemgetter(0))
            for key, value in zip(one.shared.keys, one.values, strict=True)
        ]

    def _fit_into_size(self) -> bool:
        thinned = False
        while self._size is not None and sum(one.numbers for one in self._stages.values()) > self._size:
            several = [one for one in self._stages.values() if len(one.steps) > 1]
            if not several:
                break
            self._let_go(max(several, key=lambda one: one.numbers).thin())
            thinned = True
        return thinned

    def _let_go(self, steps: Iterable[_Step]) -> None:
        for one in steps:
            one.shared.uses -= 1
            if not one.shared.uses:
                del self._keys[one.shared.keys]


class _SharedKeys:
    """The keys of steps that have the same ones: they are kept once, and for each step only the numbers."""

    def __init__(self, keys: _Keys) -> None:
        self.keys = keys
        self.uses = 0


class _Step(NamedTuple):
    place: int  # among those of its stage
    order: int  # among all
    step: int
    shared: _SharedKeys
    values: array[float]


class _OfStage:
    """The steps of one stage.

    Attributes:
        steps: those that are kept: every ``stride``-th of those that were added, and the last.
        added: how many were added.
        numbers: how many numbers the kept ones have.
    """

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.added = self.numbers = 0
        self._stride = 1

    def add(self, step: _Step) -> list[_Step]:
        """Keep a step, and return what is left out: the one before, if it was only kept as the last."""
        gone = [self.steps.pop()] if self.steps and self.steps[-1].place % self._stride else []
        self.steps.append(step)
        self.added += 1
        self.numbers += len(step.values) - sum(len(one.values) for one in gone)
        return gone

    def thin(self) -> list[_Step]:
        """Double the stride, and return the steps that are left out; of two steps it is the first."""
        *before, last = self.steps
        self._stride *= 2
        kept = [one for one in before if one.place % self._stride == 0] if len(before) > 1 else []
        gone = [one for one in before if one.place % self._stride] if kept else before
        self.steps = [*kept, last]
        self.numbers -= sum(len(one.values) for one in gone)
        return gone
