"""Readings to all loggers of a run, to each logger what it can show.

The module is not named ``write.py``: importing a submodule of that name would hide the package's function.
"""

from __future__ import annotations

from collections.abc import Iterable

from mi_crow_lightning._warned import warn
from mi_crow_lightning.loggers.compact_tensors import compact
from mi_crow_lightning.loggers.scalar_choice import Choice, Scalars, resolve_scalars, shown
from mi_crow_lightning.loggers.scalars import MetricsLogger, write_scalars
from mi_crow_lightning.loggers.step import LoggedStep
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.loggers.tensorboard import Describe, summary_writer, write_event
from mi_crow_lightning.warnings import FailureWarning

__all__ = ["write"]


def write(loggers: Iterable[MetricsLogger], step: LoggedStep, scalars: Choice | Scalars = "all") -> None:
    """Write the readings of one step to every logger.

    A logger whose ``experiment`` is a ``SummaryWriter`` gets one event, with the readings that are shown and, as
    compact tensors, all of them. Curves over the blocks add one event per block. Any other logger gets the readings
    that are shown. On ranks other than 0 Lightning's loggers do nothing, and neither does this function. An error of
    a logger is raised, as with ``self.log``, after all other loggers were written to. When several loggers fail, the
    first error is raised and the others become warnings.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``; may be empty.
        step: the readings.
        scalars: which readings are shown, see `shown`.

    Examples:
        >>> from mi_crow_lightning.hooks.reading import Reading
        >>> from mi_crow_lightning.loggers.step import DetectorReadings
        >>> class Printer:
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        >>> detector = DetectorReadings([Reading("h.0", "std", 2.0)], ("h.0",), "h.*")
        >>> write([Printer()], LoggedStep("train", 7, [detector]))
        7 {'activations_std/h.0': 2.0}
    """
    choice = scalars if isinstance(scalars, Choice) else resolve_scalars(scalars)
    readings = shown(step, choice)
    errors: list[Exception] = []
    for logger in loggers:
        try:
            _write_to(logger, step, readings, with_curves=choice.form != "none")
        except Exception as error:  # whatever a logger raises; raised again below
            errors.append(error)
    for other in errors[1:]:
        warn(f"another logger failed too: {type(other).__name__}: {other}", FailureWarning, stacklevel=2)
    if errors:
        raise errors[0]


def _of_curve(step: LoggedStep) -> Describe:
    return lambda tag, reading: f"{step.described(tag, reading)} The x axis is the block, not the step.".lstrip()


def _write_to(logger: MetricsLogger, step: LoggedStep, readings: TaggedReadings, with_curves: bool) -> None:
    writer = summary_writer(logger)
    if writer is None:
        # Loggers of ranks other than 0 come here too; their log_metrics does nothing.
        write_scalars(logger, readings, step.step)
    else:
        write_event(writer, readings, step.step, compact(step), step.described)
        for tag, block, reading in step.by_block if with_curves else ():
            write_event(
                writer, [(tag, reading)], block, described=_of_curve(step)
            )  # the x axis is the block, not the step
