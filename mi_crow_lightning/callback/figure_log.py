"""Heatmaps of the readings as images in the loggers, drawn when an epoch ends."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._warned import noted
from mi_crow_lightning.figures.images import heatmap_image
from mi_crow_lightning.figures.readings import Series, series_of
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.loggers.history import History
from mi_crow_lightning.loggers.images import takes_images, write_image
from mi_crow_lightning.loggers.tags import TaggedReadings, stage_segment
from mi_crow_lightning.metrics.histogram import Histogram
from mi_crow_lightning.warnings import FailureWarning

__all__ = ["FigureLog"]

_NUMBERS = 50_000  # that are kept for the images
_MOST = 4  # images at the end of an epoch, where no statistic was named
_PREFERRED = ("rms", "mean_ratio", "auroc", "mean")


class FigureLog:
    """A log that keeps some of the readings and draws them when an epoch ends.

    Args:
        figures: whether to draw anything, or the names of the statistics. ``True`` draws one statistic of each
            detector: ``rms`` if it has that.

    Attributes:
        epochs: the numbers of the epochs of training by the step that each began with, also where nothing is drawn.
    """

    def __init__(self, figures: bool | Sequence[str] = False) -> None:
        self._names = None if isinstance(figures, bool) else frozenset(figures)
        self._is_on = figures is True or bool(self._names)
        self._sections: dict[str, str] = {}  # by detector, the one statistic that is drawn where none was named
        self._seen: set[str] = set()  # tags
        self._history = History(_NUMBERS)
        self._last: dict[str, int] = {}  # by stage, the last step that is not drawn yet
        self.epochs: dict[int, int] = {}

    def add(self, stage: str, step: int, readings: TaggedReadings) -> None:
        """Keep what is drawn of one step."""
        if not self._is_on:
            return
        if self._names is None:
            self._choose(readings)
        kept = [(tag, reading) for tag, reading in readings if self._is_chosen(tag, reading.name)]
        if kept:
            self._history.add(stage, step, kept)
            self._last[stage] = step

    def end_epoch(self, trainer: pl.Trainer, stage: Stage) -> None:
        """Note the end of an epoch, and draw what is new in its stage, if a logger takes images.

        Whatever goes wrong becomes a warning, and nothing is drawn from then on.
        """
        if stage is Stage.TRAIN:
            begins = trainer_facts.batches_that_stepped(trainer)
            before = {step: epoch for step, epoch in self.epochs.items() if step < begins}
            self.epochs = {**before, begins: trainer.current_epoch + 1}
        step = self._last.pop(stage.value, None)
        if step is None or not self._is_on or not trainer.is_global_zero:
            return
        loggers = [logger for logger in trainer.loggers if takes_images(logger)]
        try:
            self._draw(loggers, stage, step)
        except Exception as error:  # whatever matplotlib or a logger raises
            self._is_on = False
            text = (
                f"HookCallback(figures=...): no image could be drawn or written, and no more will be. The run goes on. "
                f"{type(error).__name__}: {message_of(error)}"
            )
            rank_zero_warn(noted(text), category=FailureWarning)

    def _choose(self, readings: TaggedReadings) -> None:
        """Choose one statistic of each detector that is new, by the first part of its tags."""
        if self._seen.issuperset(tag for tag, _ in readings):
            return
        self._seen.update(tag for tag, _ in readings)
        of_detector: dict[str, dict[str, str]] = {}
        for tag, reading in readings:
            section = tag.partition("/")[0]
            if not isinstance(reading.value, Histogram):
                of_detector.setdefault(section.removesuffix(f"_{reading.name}"), {})[reading.name] = section
        for prefix, sections in of_detector.items():
            if prefix not in self._sections:
                name = next((one for one in _PREFERRED if one in sections), next(iter(sections)))
                self._sections[prefix] = sections[name]

    def _is_chosen(self, tag: str, name: str) -> bool:
        return tag.partition("/")[0] in self._sections.values() if self._names is None else name in self._names

    def _draw(self, loggers: Sequence[object], stage: Stage, step: int) -> None:
        rows = [row for row in self._history.rows() if row.stage == stage.value] if loggers else []
        series = list(dict.fromkeys(map(series_of, rows)))
        for one in series if self._names is not None else series[:_MOST]:
            write_image(loggers, _tag(one), heatmap_image(rows, one, self.epochs), step)


def _tag(series: Series) -> str:
    loader = "" if series.dataloader_idx is None else f"/dataloader_idx_{series.dataloader_idx}"
    return f"figures/{stage_segment(series.stage)}{series.section}{loader}"
