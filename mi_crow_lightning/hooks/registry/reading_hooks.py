"""The readings of one detector, checked where an error can still name it."""

from __future__ import annotations

from mi_crow_lightning._shown import shown
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["readings_of"]


def readings_of(detector: Detector) -> list[Reading]:
    """Return the detector's readings.

    Raises:
        TypeError, ValueError: one of them is not a reading, or a logger could not show it.
    """
    readings = list(detector.readings())
    declared = detector.reading_names()
    for reading in readings:
        if not isinstance(reading, Reading):
            raise TypeError(f"readings() must return Reading(layer, name, value), not {shown(reading)}")
        _check_value(reading)
        if declared and reading.name not in declared:
            raise ValueError(f"readings() returned {reading.name!r}, which is not in reading_names() {declared!r}")
    return readings


def _check_value(reading: Reading) -> None:
    """Refuse what would fail in a logger, where nobody knows the detector any more."""
    value = reading.value
    if not isinstance(reading.layer, str) or not isinstance(reading.name, str):
        raise TypeError(f"the layer and the name of {shown(reading)} must be strings: they become its tag")
    if isinstance(value, Histogram):
        kinds = set(map(type, (*value.edges, *value.counts, *value[2:])))
        if not all(issubclass(kind, (int, float)) for kind in kinds):
            raise TypeError(f"{shown(reading)}: a Histogram holds numbers; of tensors give .tolist() and .item()")
        return
    if not isinstance(value, (int, float)):
        raise TypeError(
            f"the value of {shown(reading)} must be a number or a Histogram; for a tensor return its .item()"
        )
    try:
        float(value)
    except OverflowError:
        raise ValueError(
            f"the value of {reading.name!r} at {reading.layer!r} is a whole number that is too large for a float: "
            "return float('inf'), or leave the reading out"
        ) from None
