"""The choice of the numbers of a step that become scalars: all, a summary over the layers, or none."""

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
"""The choices."""

AUTO_LIMIT = 500
"""The most tags for which ``"auto"`` means ``"all"``: those of 33 layers with everything that is measured."""

_OVER_LAYERS: dict[str, Callable[[list[float]], float]] = {"min": min, "median": statistics.median, "max": max}


def resolve_scalars(scalars: str, tags: int) -> str:
    """Return the choice that ``"auto"`` stands for, and any other choice as it is.

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
    """Return the readings of a step that loggers show, as scalars and as histograms.

    ``"all"`` means all readings. ``"summary"`` means, for each detector and statistic, the smallest, the median and
    the largest number over the layers read in this step, and no histograms. Its tags are
    ``<prefix>_<statistic>/<signature>/max``, with ``val/`` and so on before the signature. ``nan`` is left out if
    there is any other number. A detector of three layers or fewer shows the numbers themselves: a summary would not
    be shorter. ``"none"`` means nothing.

    Args:
        step: the readings of the step.
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
        (tag(reading, step.stage, detector.prefix, step.dataloader_idx), reading)
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
