"""Making the report of each run of a HookCallback, and refusing a run that it is against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as pl

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.report.build import CallbackArguments, build_report
from mi_crow_lightning.report.info_log import log_info
from mi_crow_lightning.report.refusals import run_refusals, strengths_of_no_batch, trial_registration
from mi_crow_lightning.report.report_log import ReportLog
from mi_crow_lightning.report.run_report import refusals_in_words

__all__ = ["Reporter"]


class Reporter(ReportLog):
    """The author of a callback's reports: one for each run, made when its hooks are registered.

    Args:
        form: see `ReportLog`.
    """

    def begin(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        arguments: CallbackArguments,
        layers: Layers,
        registries: Sequence[Layers],
    ) -> None:
        """Log the report of a run that begins, then refuse the run if it must be.

        Args:
            trainer: the Trainer, in one of its ``on_*_start`` events.
            pl_module: its LightningModule.
            arguments: those of the callback.
            layers: the registry that holds its hooks.
            registries: those of all HookCallbacks of the Trainer, ``layers`` among them.

        Raises:
            RegistrationError, VectorMismatch, StrengthMismatch: the first of the report's refusals.
        """
        refused = run_refusals(trainer, pl_module, layers, registries)
        self.log(trainer, build_report(trainer, pl_module, arguments, layers, refused), layers.unmasked)
        if refused:
            raise refused[0]

    def data_loaded(self, trainer: pl.Trainer, hooks: Sequence[Hook]) -> None:
        """Refuse a fit whose batches, now that they are known, do not fit its hooks; a dry run only reports it.

        Args:
            trainer: the Trainer, in ``on_train_start``.
            hooks: those of the callback.

        Raises:
            StrengthMismatch: the first of the new refusals.
        """
        refused = strengths_of_no_batch(trainer, hooks)
        if not refused or self._last is None:
            return
        self._last = report = replace(self._last, refused=(*self._last.refused, *map(str, refused)))
        if not report.dry_run:
            raise refused[0]
        log_info(refusals_in_words(map(str, refused), report.dry_run))

    def rehearse(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, arguments: CallbackArguments, others: Sequence[Layers]
    ) -> None:
        """Log the report of a dry run that begins, with all that a real run would refuse.

        Args:
            trainer: the Trainer, in one of its ``on_*_start`` events.
            pl_module: its LightningModule.
            arguments: those of the callback.
            others: the registries of the Trainer's other HookCallbacks.
        """
        with trial_registration(pl_module, arguments.root, arguments.hooks) as (layers, refused_hooks):
            refused = run_refusals(trainer, pl_module, layers, [*others, layers])
            report = build_report(trainer, pl_module, arguments, layers, refused, refused_hooks, dry_run=True)
            self.log(trainer, report, layers.unmasked)
