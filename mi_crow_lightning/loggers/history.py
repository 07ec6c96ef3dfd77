"""The numbers that were written, as a table: for runs without a logger, and for scripts that print a summary."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["History", "HistoryRow"]

_Keys = tuple[tuple[str, str, str], ...]  # (tag, layer, name) of each number of a step


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

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> history = History()
        >>> history.add("train", 4, [("activations_mean/h.0", Reading("h.0", "mean", 0.5))])
        >>> history.rows()[0].value
        0.5
    """

    def __init__(self) -> None:
        # Steps repeat the same tags, so the tags are kept once, and for each step only the numbers.
        self._keys: dict[_Keys, _Keys] = {}
        self._steps: list[tuple[str, int, _Keys, array[float]]] = []

    def add(self, stage: str, step: int, readings: TaggedReadings) -> None:
        """Keep the numbers of one step."""
        keys, values = [], array("d")
        for tag, reading in readings:
            if not isinstance(reading.value, Histogram):
                keys.append((tag, reading.layer, reading.name))
                values.append(reading.value)
        self._steps.append((stage, step, self._keys.setdefault(tuple(keys), tuple(keys)), values))

    def rows(self) -> list[HistoryRow]:
        """Return every number that was kept, in the order of writing."""
        return [
            HistoryRow(stage, step, *key, value)
            for stage, step, keys, values in self._steps
            for key, value in zip(keys, values, strict=True)
        ]
