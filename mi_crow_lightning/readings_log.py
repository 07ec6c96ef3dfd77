"""From detectors to loggers: readings are collected, tagged, written and remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from mi_crow_lightning.hooked_run import HookedRun
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.dispatch import write
from mi_crow_lightning.loggers.history import History, HistoryRow
from mi_crow_lightning.loggers.layout import write_layout
from mi_crow_lightning.loggers.scalars import MetricsLogger, scalars_of
from mi_crow_lightning.loggers.tags import tag
from mi_crow_lightning.loggers.tensorboard import summary_writer

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
        for detector in run.detectors:
            if detector.error is not None and not detector.enabled:
                continue  # off for good since it failed: asked again, it would only fail and warn again
            readings = run.layers.call(detector, partial(_read, detector)) or []
            tagged += [(tag(reading, stage, detector.tag_prefix), reading) for reading in readings]
            run.layers.call(detector, detector.reset)
        if not tagged:
            return {}
        if stage not in self._laid_out:  # with the first numbers of a stage, so that no chart stays empty
            self._laid_out.add(stage)
            self._lay_out(run, loggers, stage)
        self._history.add(stage, step, tagged)
        write(loggers, tagged, step)
        return scalars_of(tagged)

    def _lay_out(self, run: HookedRun, loggers: Iterable[MetricsLogger], stage: str) -> None:
        """Add the stage to TensorBoard's Custom Scalars page: one chart a statistic, one line a layer."""
        charts: dict[str, list[str]] = {}
        for detector in run.detectors:
            names = [name for name in detector.reading_names() if name != "histogram"]
            charts.setdefault(detector.tag_prefix, []).extend(names)
        for writer in map(summary_writer, loggers if any(charts.values()) else ()):
            if writer is not None:
                write_layout(writer, charts, stages=[stage])


def _read(detector: Detector) -> list[Reading]:
    return list(detector.readings())
