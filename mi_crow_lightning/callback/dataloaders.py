"""The dataloaders of an evaluation, read together or one by one."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts
from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["Dataloaders"]


class Dataloaders:
    """The place in an evaluation's dataloaders up to which readings were written.

    Args:
        apart: whether each dataloader has its own readings, where there are several and they run in turn.
    """

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._unread = 0  # the first that was not read

    def begin(self) -> None:
        """Begin an evaluation, also after one that was broken off."""
        self._unread = 0

    def count(self, trainer: pl.Trainer, stage: Stage) -> int:
        """Return how many dataloaders of a stage have their own readings, 1 if all are read together."""
        return trainer_facts.dataloaders_in_turn(trainer, stage) if self._apart else 1

    def over(self, trainer: pl.Trainer, stage: Stage, begins: int | None = None) -> Iterator[int | None]:
        """Yield each dataloader that is over and not read; ``None`` stands for all of them together.

        With several ranks, each yields all dataloaders in the same order, those too that had no batch for it.

        Args:
            trainer: the Trainer.
            stage: the running evaluation.
            begins: the dataloader whose batch begins; ``None`` at the end of the evaluation.
        """
        count = self.count(trainer, stage)
        if count > 1:
            while self._unread < (count if begins is None else begins):
                self._unread += 1
                yield self._unread - 1
        elif begins is None:
            yield None
