"""Readings, the values that detectors pass to the loggers.

Detectors make readings and loggers take them; neither knows the other.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mi_crow_lightning.metrics.histogram import Histogram


class Reading(NamedTuple):
    """One value of one layer.

    Attributes:
        layer: name of the layer, without wrapper prefixes.
        name: name of the statistic, e.g. ``"mean"``; it becomes part of the tag.
        value: a number, or a `Histogram`.
        kind: ``"scalar"`` or ``"histogram"``.
    """

    layer: str
    name: str
    value: float | Histogram
    kind: Literal["scalar", "histogram"] = "scalar"
