"""From detectors to loggers: readings are collected, tagged, written and remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from mi_crow_lightning.errors import TagConflict
from mi_crow_lightning.hooked_run import HookedRun
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.dispatch import write
from mi_crow_lightning.loggers.history import History, HistoryRow
from mi_crow_lightning.loggers.layout import write_layout
from mi_crow_lightning.loggers.scalars import MetricsLogger, scalars_of
from mi_crow_lightning.loggers.tags import TaggedReadings, tag
from mi_crow_lightning.loggers.tensorboard import summary_writer
from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["ReadingsLog"]


class ReadingsLog:
    """Writes what detectors have to say, and keeps the numbers."""

    def __init__(self) -> None:
        self._history = History()
        self._laid_out: set[str] = set()

    def begin_run(self) -> None:
        """A run begins, maybe with other loggers: they have no layout yet."""
        self._laid_out.clear()

    def rows(self) -> list[HistoryRow]:
        """All numbers written so far."""
        return self._history.rows()

    def write(self, run: HookedRun, loggers: Sequence[MetricsLogger], step: int) -> dict[str, float]:
        """Write the readings of all detectors in the running stage, and begin the next ones.

        Args:
            run: the hooks.
            loggers: where to; may be empty.
            step: the position on the x axis.

        Returns:
            The numbers by tag.
        """
        assert run.moment is not None, "readings belong to a stage"
        stage = run.moment.stage.value
        tagged: list[tuple[str, Reading]] = []
        charts: dict[str, list[str]] = {}
        for detector in run.detectors:
            if detector.error is not None and not detector.enabled:
                continue  # off for good since it failed: asked again, it would only fail and warn again
            if not run.take_unread(detector):
                continue
            readings = run.layers.call(detector, partial(_read, detector)) or []
            tagged += [(tag(reading, stage, detector.tag_prefix), reading) for reading in readings]
            numbers = [reading.name for reading in readings if not isinstance(reading.value, Histogram)]
            charts.setdefault(detector.tag_prefix, []).extend(dict.fromkeys(numbers))
            run.layers.call(detector, detector.reset)
        if not tagged:
            return {}
        _refuse_shared_tags(tagged)
        if stage not in self._laid_out:  # with the first numbers of a stage, so that no chart stays empty
            self._laid_out.add(stage)
            self._lay_out(charts, loggers, stage)
        self._history.add(stage, step, tagged)
        write(loggers, tagged, step)
        return scalars_of(tagged)

    def _lay_out(self, charts: dict[str, list[str]], loggers: Iterable[MetricsLogger], stage: str) -> None:
        """Add the stage to TensorBoard's Custom Scalars page: one chart a statistic, one line a layer."""
        for writer in map(summary_writer, loggers):
            if writer is not None:
                write_layout(writer, charts, stages=[stage])


def _read(detector: Detector) -> list[Reading]:
    """The detector's readings; what is no reading fails here, where the detector can be named."""
    readings = list(detector.readings())
    declared = detector.reading_names()
    for reading in readings:
        if not isinstance(reading, Reading):
            raise TypeError(f"readings() must give Reading(layer, name, value), not {reading!r}")
        if not isinstance(reading.value, (int, float, Histogram)):
            raise TypeError(f"the value of {reading!r} must be a number or a Histogram; of a tensor, give its .item()")
        if declared and reading.name not in declared:
            raise ValueError(f"readings() gave {reading.name!r}, which is not in reading_names() {declared!r}")
    return readings


def _refuse_shared_tags(tagged: TaggedReadings) -> None:
    """Detectors that declare their `reading_names` are refused at the start; others show only here."""
    tags = [tag for tag, _ in tagged]
    shared = next((tag for tag in tags if tags.count(tag) > 1), None) if len(set(tags)) < len(tags) else None
    if shared is not None:
        raise TagConflict(
            f"two readings of one step have the tag {shared!r}: give one of the detectors name=..., which becomes "
            "its tags' first part"
        )
