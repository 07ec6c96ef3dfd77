"""The charts of the readings that a step shows, on TensorBoard's page of Custom Scalars."""

from __future__ import annotations

from collections.abc import Iterable

from mi_crow_lightning.loggers.layout import Band, write_layout
from mi_crow_lightning.loggers.scalar_choice import Choice, shown, summarised
from mi_crow_lightning.loggers.step import LoggedStep
from mi_crow_lightning.loggers.tensorboard import summary_writer
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["lay_out"]


def lay_out(step: LoggedStep, loggers: Iterable[object], choice: Choice, dataloaders: int = 1) -> None:
    """Add the stage of a step to the page: a chart a statistic, with a line for each layer or the band of a summary.

    Args:
        step: the first readings of the stage.
        loggers: the loggers of the run.
        choice: the readings that they show.
        dataloaders: how many dataloaders of the stage have their own readings.
    """
    lines: dict[str, list[str]] = {}
    bands: list[Band] = []
    indices = [None] if step.dataloader_idx is None else list(range(dataloaders))
    for detector in step.detectors:
        of_one = LoggedStep(step.stage, step.step, [detector])
        numbers = [one for _, one in shown(of_one, choice) if not isinstance(one.value, Histogram)]
        names = list(dict.fromkeys(one.name for one in numbers))
        if summarised(detector, choice):
            bands += [Band(detector.prefix, name, detector.signature, indices) for name in names]
        else:
            known = lines.setdefault(detector.prefix, [])
            known += [name for name in names if name not in known]
    for writer in map(summary_writer, loggers):
        if writer is not None:
            write_layout(writer, lines, [step.stage], bands)
