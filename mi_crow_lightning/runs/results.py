"""The results of a callback's runs: its numbers, the changes that controllers made, its report, and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mi_crow_lightning.choices import HistogramKind, ScaleName, StageName
from mi_crow_lightning.figures.histogram import plot_histogram
from mi_crow_lightning.hooks.effects import Effects, EffectTable
from mi_crow_lightning.loggers.histogram_history import HistogramHistory
from mi_crow_lightning.loggers.history import HistoryTable
from mi_crow_lightning.report.report_log import ReportLog
from mi_crow_lightning.report.run_report import RunReport
from mi_crow_lightning.runs.readings_log import ReadingsLog
from mi_crow_lightning.spawned_runs import SpawnedRuns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Results"]


class Results:
    """The part of a callback that returns what its runs gave; the callback sets its attributes."""

    _effects: Effects | None
    _histograms: HistogramHistory
    _log: ReadingsLog
    _reporter: ReportLog
    _spawned_runs: SpawnedRuns

    def _epochs(self) -> Mapping[int, int]:
        """Return the numbers of the epochs of training by the step that each began with."""
        return {}

    def history(self) -> HistoryTable:
        """Return the numbers written since this callback was made, with or without a logger: a list of `HistoryRow`.

        These are all up to ``history_size``. Beyond that they are those of every second step, later of every fourth,
        and so on, spread over all of the run, and always those of the last step of each stage.

        Raises:
            RanElsewhere: the last run used ``ddp_spawn`` or the like, and this is not one of its processes.
        """
        self._spawned_runs.refuse("history()")
        return self._log.rows()

    def effects(self) -> EffectTable:
        """Return what each controller changed in the current or last run, by layer and stage, over all ranks.

        The result is a list of `Effect`.

        Updated at the end of validation, test and predict, and in training at the steps that are logged and at the end.

        Raises:
            RanElsewhere: as `history`.
        """
        self._spawned_runs.refuse("effects()")
        return self._effects.rows(self._log.run) if self._effects is not None else EffectTable()

    def report(self) -> RunReport:
        """Return what the run watches and steers, and whether that works with what else it uses.

        Raises:
            NoReport: no run has begun.
            RanElsewhere: as `history`.
        """
        self._spawned_runs.refuse("report()")
        return self._reporter.last()

    def plot(
        self,
        name: str,
        *,
        stage: StageName | None = None,
        layers: str | Iterable[str] | None = None,
        scale: ScaleName = "linear",
        dataloader_idx: int | None = None,
        ax: Any = None,
    ) -> tuple[Figure, Axes]:
        """Draw a statistic as a heatmap, layer by step, from the numbers that `history` holds; epochs are marked.

        The arguments and the errors are those of `mi_crow_lightning.figures.plot_heatmap`. Needs matplotlib.

        Returns:
            The figure and its axes.

        Raises:
            RanElsewhere: as `history`.
        """
        options: dict[str, Any] = dict(stage=stage, layers=layers, scale=scale, dataloader_idx=dataloader_idx, ax=ax)
        return self.history().plot(name, epochs=self._epochs(), **options)

    def plot_histogram(
        self,
        layer: str | int,
        *,
        stage: StageName | None = None,
        name: str = "histogram",
        kind: HistogramKind = "heat",
        dataloader_idx: int | None = None,
        ax: Any = None,
    ) -> tuple[Figure, Axes]:
        """Draw the histograms of one layer over the steps, those of up to 100 steps spread over all runs.

        The arguments and the errors are those of `mi_crow_lightning.figures.plot_histogram`. Needs matplotlib.

        Returns:
            The figure and its axes.

        Raises:
            RanElsewhere: as `history`.
        """
        self._spawned_runs.refuse("plot_histogram()")
        options: dict[str, Any] = dict(stage=stage, name=name, kind=kind, dataloader_idx=dataloader_idx, ax=ax)
        return plot_histogram(self._histograms.rows(), layer, **options)

    def plot_effects(self, *, ax: Any = None) -> tuple[Figure, Axes]:
        """Draw what each controller changed, see `effects` and `mi_crow_lightning.figures.plot_effects`.

        Returns:
            The figure and its axes.

        Raises:
            RanElsewhere: as `history`.
        """
        return self.effects().plot(ax=ax)
