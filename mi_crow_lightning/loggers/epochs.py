"""The epochs of a run, from the number that Lightning logs beside those of the LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from mi_crow_lightning._foreign_files import one_error
from mi_crow_lightning.loggers.event_file import events

__all__ = ["epochs_in", "first_steps"]


def epochs_in(files: Iterable[Path]) -> dict[int, int]:
    """Return the number of each epoch but the first by the first step that was logged in it.

    Args:
        files: event files, the oldest first. Where the LightningModule logs nothing, they name no epoch.

    Raises:
        ValueError: a file is damaged.
        OSError: a file cannot be read.
    """
    found: list[tuple[int, float]] = []
    for file in files:
        with one_error(file, ValueError):
            for event in events(file):
                found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == "epoch"]
    return first_steps(found)


def first_steps(logged: Iterable[tuple[int, float]]) -> dict[int, int]:
    """Return where epochs begin, from steps and the epochs they are in; a step that goes back begins again there.

    Examples:
        >>> first_steps([(4, 0.0), (9, 0.0), (14, 1.0), (19, 1.0), (24, 2.0)])
        {14: 1, 24: 2}
    """
    kept: list[tuple[int, int]] = []
    for step, epoch in logged:
        while kept and kept[-1][0] >= step:
            kept.pop()
        if epoch.is_integer():
            kept.append((step, int(epoch)))
    return {step: epoch for (_, before), (step, epoch) in pairwise(kept) if epoch != before}
