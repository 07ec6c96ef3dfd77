"""Which numbers of a step become scalars: all, a few over the layers, or none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.step import DetectorReadings, LoggedStep
from mi_crow_lightning.loggers.tags import TaggedReadings, tag
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["AUTO_LIMIT", "SCALARS", "resolve_scalars", "shown"]

SCALARS: tuple[str, ...] = ("auto", "all", "summary", "none")
"""What may be asked for as scalars."""

AUTO_LIMIT = 500
"""The number of tags up to which ``"auto"`` means ``"all"``: 33 layers with everything that is measured."""

_OVER_LAYERS: dict[str, Callable[[list[float]], float]] = {"min": min, "median": statistics.median, "max": max}


def resolve_scalars(scalars: str, tags: int) -> str:
    """Return what ``"auto"`` stands for; the other choices are returned as they are.

    Args:
        scalars: one of `SCALARS`.
        tags: how many tags ``"all"`` would write in a stage, histograms included.

    Returns:
        ``"all"``, ``"summary"`` or ``"none"``.

    Examples:
        >>> resolve_scalars("auto", tags=12 * 15), resolve_scalars("auto", tags=100 * 8)
        ('all', 'summary')
    """
    if scalars != "auto":
        return scalars
    return "all" if tags <= AUTO_LIMIT else "summary"


def shown(step: LoggedStep, scalars: str) -> TaggedReadings:
    """Return the readings of a step that become scalars, and histograms of their own.

    ``"all"`` are all readings. ``"summary"`` are, for each detector and statistic, the smallest, the median and
    the largest number over the layers read in this step; ``nan`` is left out as long as another number is
    there. A detector of three layers or fewer shows their numbers themselves: a summary would be no shorter.
    Its tags are ``<prefix>_<statistic>/<signature>/max``, with ``val/`` and so on before the signature. It
    holds no histograms. ``"none"`` is nothing.

    Args:
        step: the readings.
        scalars: ``"all"``, ``"summary"`` or ``"none"``.

    Examples:
        >>> layers = tuple(f"h.{i}" for i in range(4))
        >>> four = [Reading(layer, "rms", 2.0**i) for i, layer in enumerate(layers)]
        >>> for tag, reading in shown(LoggedStep("train", 7, [DetectorReadings(four, layers, "h.*")]), "summary"):
        ...     print(tag, reading.value)
        activations_rms/h.*/min 1.0
        activations_rms/h.*/median 3.0
        activations_rms/h.*/max 8.0
    """
    if scalars == "all":
        return step.tagged
    if scalars == "none":
        return []
    return [
        (tag(reading, step.stage, detector.prefix), reading)
        for detector in step.detectors
        for reading in _summary(detector)
    ]


def _summary(detector: DetectorReadings) -> Iterator[Reading]:
    numbers = [(reading, reading.value) for reading in detector.readings if not isinstance(reading.value, Histogram)]
    if len(detector.layers) <= len(_OVER_LAYERS):
        yield from (reading for reading, _ in numbers)
        return
    by_name: dict[str, list[float]] = {}
    for reading, value in numbers:
        by_name.setdefault(reading.name, []).append(value)
    for name, values in by_name.items():
        present = [value for value in values if not math.isnan(value)] or [math.nan]
        for word, over_layers in _OVER_LAYERS.items():
            yield Reading(f"{detector.signature}/{word}", name, over_layers(present))
