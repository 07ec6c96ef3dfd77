"""The changes that hooks made, as readings: those of a stage, and those over the batches of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from mi_crow_lightning.hooks.effects import Effect
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.compact_tensors import compact
from mi_crow_lightning.loggers.step import DetectorReadings, LoggedStep
from mi_crow_lightning.loggers.tensorboard import summary_writer, write_event
from mi_crow_lightning.metrics.descriptions import EFFECTS

__all__ = ["QUANTITIES", "OverBatches", "readings_of_effects", "write_over_batches"]

QUANTITIES = ("tokens", "fired", "mean_ratio", "max_ratio")
"""The names of the readings of what a controller changed."""

OverBatches: TypeAlias = Sequence[tuple[int, Sequence[Effect]]]
"""The numbers of batches, each with the changes since the batch before it in the list."""


def readings_of_effects(effects: Iterable[Effect], prefix: str = "steering") -> Iterator[DetectorReadings]:
    """Yield what each hook changed, as readings under ``<prefix>_<quantity>/<hook>/<layer>``."""
    for hook, of_hook in groupby(effects, key=lambda effect: effect.hook):
        rows = [(f"{hook}/{effect.layer}", effect) for effect in of_hook]
        numbers = [(place, name, getattr(effect, name)) for place, effect in rows for name in QUANTITIES]
        # There is no ratio if no token was changed.
        readings = [Reading(place, name, value) for place, name, value in numbers if not math.isnan(value)]
        places, blocks = tuple(place for place, _ in rows), tuple(effect.block for _, effect in rows)
        yield DetectorReadings(readings, places, hook, prefix=prefix, blocks=blocks, described=_described)


def _described(name: str) -> str:
    return EFFECTS.get(name, "")


def write_over_batches(
    loggers: Iterable[object], stage: str, over_batches: OverBatches, dataloader_idx: int | None = None
) -> None:
    """Write what hooks changed over the batches of an evaluation: compact tensors alone, with the batch as the step.

    Args:
        loggers: those of TensorBoard get the tensors.
        stage: the stage.
        over_batches: the changes.
        dataloader_idx: the dataloader, where each has its own readings.
    """
    writers = [writer for writer in map(summary_writer, loggers) if writer is not None]
    for batch, effects in over_batches if writers else ():
        readings = list(readings_of_effects(effects, prefix="steering_by_batch"))
        tensors = compact(LoggedStep(stage, batch, readings, dataloader_idx))
        for writer in writers:
            write_event(writer, [], batch, tensors)
