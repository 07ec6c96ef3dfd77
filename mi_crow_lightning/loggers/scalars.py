"""Readings to any Lightning logger but TensorBoard's: numbers, and whatever else a known logger takes."""

from __future__ import annotations

from typing import Any, Protocol

from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.loggers.wandb_and_mlflow import allowed_names, histograms_of
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["MetricsLogger", "scalars_of", "write_scalars"]


class MetricsLogger(Protocol):
    """A logger of numbers, as every Lightning logger is."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> Any:
        """Log numbers by name."""


def scalars_of(readings: TaggedReadings) -> dict[str, float]:
    """Return the numbers among the readings, by tag."""
    return {tag: float(reading.value) for tag, reading in readings if not isinstance(reading.value, Histogram)}


def write_scalars(logger: MetricsLogger, readings: TaggedReadings, step: int) -> None:
    """Log the numbers among the readings in one call of ``logger.log_metrics``.

    W&B also gets the histograms, in the same call. Every other logger gets none: no two loggers agree on what a
    histogram is. MLflow allows fewer characters in names than torch allows in the names of layers; any other
    character becomes ``_`` there. If there is nothing to log, the logger is not called.

    Args:
        logger: a Lightning logger, or any object with the same ``log_metrics``.
        readings: ``(tag, reading)`` pairs of one step. NaN and infinity are logged as they are.
        step: the position on the x axis.

    Raises:
        TagConflict: two tags become the same name in MLflow.

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> class Printer:
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        >>> write_scalars(Printer(), [("activations_mean/h.0", Reading("h.0", "mean", 0.5))], step=3)
        3 {'activations_mean/h.0': 0.5}
    """
    metrics = {**scalars_of(readings), **histograms_of(logger, readings)}
    if metrics:
        logger.log_metrics(allowed_names(logger, metrics), step=step)
