"""Making, telling and keeping the report of a run."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl

from mi_crow_lightning.errors import NoReport
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.report.of_run import Asked, report_on
from mi_crow_lightning.report.refusals import refusals
from mi_crow_lightning.report.rehearsal import rehearsal
from mi_crow_lightning.report.run_report import RunReport
from mi_crow_lightning.report.tell import tell

__all__ = ["Reporter"]


class Reporter:
    """Reports on the runs of a callback, each once, when its hooks are registered."""

    def __init__(self) -> None:
        self._last: RunReport | None = None

    def last(self) -> RunReport:
        """The report of the running run, or of the last one.

        Raises:
            NoReport: no run has got as far as having one.
        """
        if self._last is None:
            raise NoReport("there is a report once a run has begun and hooks found their layers, in its own process")
        return self._last

    def begin(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        asked: Asked,
        layers: Layers,
        registries: Sequence[Layers],
    ) -> None:
        """A run begins: tell its report, then refuse it if it must be.

        Args:
            trainer: the Trainer, in one of its ``on_*_start`` events.
            pl_module: its LightningModule.
            asked: what the callback was asked for.
            layers: where its hooks are registered.
            registries: those of all HookCallbacks of the Trainer, ``layers`` among them.

        Raises:
            RegistrationError: the first of the report's refusals.
        """
        refused = refusals(trainer, layers, registries)
        self._tell(report_on(trainer, pl_module, asked, layers, refused))
        if refused:
            raise refused[0]

    def rehearse(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, asked: Asked, others: Sequence[Layers]
    ) -> None:
        """A dry run begins: tell its report, with what would be refused.

        Args:
            trainer: the Trainer, in one of its ``on_*_start`` events.
            pl_module: its LightningModule.
            asked: what the callback was asked for.
            others: the hooks of the Trainer's other HookCallbacks.
        """
        with rehearsal(pl_module, asked.root, asked.hooks) as (layers, refused_hooks):
            refused = refusals(trainer, layers, [*others, layers])
            self._tell(report_on(trainer, pl_module, asked, layers, refused, refused_hooks, dry_run=True))

    def _tell(self, report: RunReport) -> None:
        self._last = report
        tell(str(report))
