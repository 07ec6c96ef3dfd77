"""The number of tags that a run's detectors would write, which decides whether loggers show a summary instead."""

from __future__ import annotations

from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.layers import Layers

__all__ = ["count_tags", "hides_readings"]


def count_tags(layers: Layers, dataloaders: int = 1) -> int:
    """Return how many tags a stage has with ``scalars="auto"`` if each layer has its own.

    These are the readings that each detector has shown by default, as far as detectors declare their readings.

    Args:
        layers: the registry that holds the detectors.
        dataloaders: how many dataloaders of the stage have their own readings.
    """
    of_one = sum(len(layers.sites(detector)) * max(1, len(_shown(detector))) for detector in _detectors(layers))
    return of_one * dataloaders


def hides_readings(layers: Layers) -> bool:
    """Return whether a detector has readings that ``scalars="auto"`` does not show."""
    return any(len(_shown(detector)) < len(detector.reading_names()) for detector in _detectors(layers))


def _detectors(layers: Layers) -> list[Detector]:
    return [hook for hook in layers.get_hooks() if isinstance(hook, Detector) and hook._has_readings]


def _shown(detector: Detector) -> tuple[str, ...]:
    by_default = detector._shown_by_default
    return detector.reading_names() if by_default is None else by_default
