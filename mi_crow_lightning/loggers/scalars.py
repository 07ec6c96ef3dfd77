"""Readings to any Lightning logger but TensorBoard's: the numbers, and what else it is known to take."""

from __future__ import annotations

from typing import Any, Protocol

from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.loggers.wandb_and_mlflow import allowed_names, histograms_of
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["MetricsLogger", "scalars_of", "write_scalars"]


class MetricsLogger(Protocol):
    """What is asked of a logger; every Lightning logger has it."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> Any:
        """Log numbers by name."""


def scalars_of(readings: TaggedReadings) -> dict[str, float]:
    """The numbers among the readings, by tag."""
    return {tag: float(reading.value) for tag, reading in readings if not isinstance(reading.value, Histogram)}


def write_scalars(logger: MetricsLogger, readings: TaggedReadings, step: int) -> None:
    """Log the numbers among the readings in one call of ``logger.log_metrics``.

    W&B gets the histograms too, in the same call. MLflow allows fewer characters in names than torch does in
    those of layers; the others become ``_`` there. Histograms are left out for every other logger: no two
    agree on what a histogram is. Without anything to log the logger is not called.

    Args:
        logger: a Lightning logger, or any object with such a ``log_metrics``.
        readings: ``(tag, reading)`` pairs of one step. NaN and infinity are logged as they are.
        step: the position on the x axis.

    Raises:
        TagConflict: two tags become one in MLflow's characters.

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
