"""The number of tags that a run's detectors would write, which decides whether loggers show a summary instead."""

from __future__ import annotations

from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.layers import Layers

__all__ = ["count_tags"]


def count_tags(layers: Layers, dataloaders: int = 1) -> int:
    """Return how many tags a stage would have if each layer had its own, as far as detectors declare their readings.

    Args:
        layers: the registry that holds the detectors.
        dataloaders: how many dataloaders of the stage have their own readings.
    """
    detectors = [hook for hook in layers.get_hooks() if isinstance(hook, Detector)]
    of_one = sum(len(layers.sites(detector)) * max(1, len(detector.reading_names())) for detector in detectors)
    return of_one * dataloaders
