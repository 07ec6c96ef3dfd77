"""Readings to all loggers of a run, to each what it can show.

Not named ``write.py``: importing a submodule of that name would hide the function of the package.
"""

from __future__ import annotations

from collections.abc import Iterable

from mi_crow_lightning.loggers.scalars import MetricsLogger, write_scalars
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.loggers.tensorboard import summary_writer, write_event

__all__ = ["write"]


def write(loggers: Iterable[MetricsLogger], readings: TaggedReadings, step: int) -> None:
    """Write the readings of one step to every logger.

    A logger whose ``experiment`` is a ``SummaryWriter`` gets numbers and histograms in one event, any
    other gets the numbers. On ranks other than 0 Lightning's loggers do nothing, and so does this. What a
    logger raises goes on to the caller; the loggers after it are then not written.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``; may be empty.
        readings: ``(tag, reading)`` pairs of one step.
        step: the position on the x axis.

    Example:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> class Printer:
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        >>> write([Printer()], [("activations_std/h.0", Reading("h.0", "std", 2.0))], step=7)
        7 {'activations_std/h.0': 2.0}
    """
    for logger in loggers:
        writer = summary_writer(logger)
        if writer is None:
            # Loggers of ranks other than 0 come here too; their log_metrics does nothing.
            write_scalars(logger, readings, step)
        else:
            write_event(writer, readings, step)
