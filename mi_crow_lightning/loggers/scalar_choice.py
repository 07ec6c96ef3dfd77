"""The choice of the readings of a step that loggers show: of each layer, a summary over the layers, or none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias, get_args

from mi_crow_lightning.choices import OwnStatistic, ScalarsName, StatisticName
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.step import DetectorReadings, LoggedStep
from mi_crow_lightning.loggers.tags import TaggedReadings, tag
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = [
    "AUTO_LIMIT",
    "DEFAULT_SUMMARY",
    "OVER_LAYERS",
    "SCALARS",
    "Choice",
    "Scalars",
    "resolve_scalars",
    "shown",
    "summarised",
]

SCALARS: tuple[ScalarsName, ...] = get_args(ScalarsName)
"""The choices that have a name."""

Scalars: TypeAlias = ScalarsName | Sequence[StatisticName | OwnStatistic]
"""One of `SCALARS`, or the names of statistics."""

AUTO_LIMIT = 500
"""The most tags for which ``"auto"`` shows each layer's: those of 62 layers with everything that is measured."""

OVER_LAYERS: dict[str, Callable[[list[float]], float]] = {"min": min, "median": statistics.median, "max": max}
"""What a summary is made of, in the order of its tags."""


class Choice(NamedTuple):
    """A choice of readings.

    Attributes:
        form: ``"layers"``: those of each layer; ``"summary"``: of each statistic a summary over the layers; or
            ``"none"``.
        names: ``"all"``; or ``"default"``, those that each detector has shown by default; or names, which concern only
            the detectors that have a default. Of any other detector all readings are shown.
    """

    form: Literal["layers", "summary", "none"]
    names: Literal["all", "default"] | Collection[str] = "all"


DEFAULT_SUMMARY = Choice("summary", "default")
"""The choice that ``"auto"`` stands for where there are many tags."""

_NAMED: dict[str, Choice] = {
    "auto": Choice("layers", "default"),
    "all": Choice("layers"),
    "summary": Choice("summary"),
    "none": Choice("none"),
}


def resolve_scalars(scalars: Scalars, tags: int = 0) -> Choice:
    """Return the choice that a callback's ``scalars`` stands for.

    Args:
        scalars: one of `SCALARS`, or the names of statistics.
        tags: how many tags ``"auto"`` would write in a stage if it showed each layer's, histograms included.

    Examples:
        >>> resolve_scalars("auto", tags=12 * 8)
        Choice(form='layers', names='default')
        >>> resolve_scalars("auto", tags=100 * 8)
        Choice(form='summary', names='default')
        >>> resolve_scalars(["rms", "kurtosis"])
        Choice(form='layers', names=('rms', 'kurtosis'))
    """
    if not isinstance(scalars, str):
        return Choice("layers", tuple(scalars))
    return DEFAULT_SUMMARY if scalars == "auto" and tags > AUTO_LIMIT else _NAMED[scalars]


def shown(step: LoggedStep, scalars: Choice | Scalars) -> TaggedReadings:
    """Return the readings of a step that loggers show, as scalars and as histograms.

    ``"all"`` means all readings. ``"auto"`` means those that each detector has shown by default, and names mean these,
    of the detectors that have such a default. ``"summary"`` means, for each detector and statistic, the smallest, the
    median and the largest number over the layers read in this step, and no histograms. Its tags are
    ``<prefix>_<statistic>/<signature>/max``, with ``val/`` and so on before the signature. ``nan`` is left out if
    there is any other number. A detector of three layers or fewer shows the numbers themselves: a summary would not
    be shorter. ``"none"`` means nothing.

    Args:
        step: the readings of the step.
        scalars: one of `SCALARS`, or the names of statistics, or the choice that they stand for.

    Examples:
        >>> layers = tuple(f"h.{i}" for i in range(4))
        >>> four = [Reading(layer, "rms", 2.0**i) for i, layer in enumerate(layers)]
        >>> for tag, reading in shown(LoggedStep("train", 7, [DetectorReadings(four, layers, "h.*")]), "summary"):
        ...     print(tag, reading.value)
        activations_rms/h.*/min 1.0
        activations_rms/h.*/median 3.0
        activations_rms/h.*/max 8.0
    """
    choice = scalars if isinstance(scalars, Choice) else resolve_scalars(scalars)
    if choice.form == "none":
        return []
    if choice.form == "layers":
        return step.tagged if choice.names == "all" else list(_of_layers(step, choice.names))
    return [
        (tag(reading, step.stage, detector.prefix, step.dataloader_idx), reading)
        for detector in step.detectors
        for reading in _summary(detector, _names_of(detector, choice.names))
    ]


def summarised(detector: DetectorReadings, choice: Choice) -> bool:
    """Return whether a choice shows a summary over the detector's layers."""
    return choice.form == "summary" and _has_summary(detector)


def _has_summary(detector: DetectorReadings) -> bool:
    """Return whether a summary of the detector's layers is shorter than its numbers."""
    return len(detector.layers) > len(OVER_LAYERS)


def _names_of(detector: DetectorReadings, names: str | Collection[str]) -> Collection[str] | None:
    """Return the names of the readings that are shown of a detector; ``None`` for all."""
    if detector.by_default is None or names == "all":
        return None
    return detector.by_default if names == "default" else names


def _of_layers(step: LoggedStep, names: str | Collection[str]) -> Iterator[tuple[str, Reading]]:
    tagged = iter(step.tagged)
    for detector in step.detectors:
        own, kept = islice(tagged, len(detector.readings)), _names_of(detector, names)
        yield from own if kept is None else (pair for pair in own if pair[1].name in kept)


def _summary(detector: DetectorReadings, names: Collection[str] | None) -> Iterator[Reading]:
    numbers = [
        (reading, reading.value)
        for reading in detector.readings
        if not isinstance(reading.value, Histogram) and (names is None or reading.name in names)
    ]
    if not _has_summary(detector):
        yield from (reading for reading, _ in numbers)
        return
    by_name: dict[str, list[float]] = {}
    for reading, value in numbers:
        by_name.setdefault(reading.name, []).append(value)
    for name, values in by_name.items():
        present = [value for value in values if not math.isnan(value)] or [math.nan]
        for word, over_layers in OVER_LAYERS.items():
            yield Reading(f"{detector.signature}/{word}", name, over_layers(present))
