"""Making, logging and keeping the report of each run of a callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import lightning.pytorch as pl

from mi_crow_lightning.errors import NoReport
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.report.build import CallbackArguments, build_report
from mi_crow_lightning.report.feature import Feature
from mi_crow_lightning.report.in_terminal import styled
from mi_crow_lightning.report.in_words import ALL_TOKENS, NO_MASK
from mi_crow_lightning.report.info_log import log_info
from mi_crow_lightning.report.refusals import run_refusals, strengths_of_no_batch, trial_registration
from mi_crow_lightning.report.run_report import RunReport, in_short, in_words, refusals_in_words

__all__ = ["Reporter"]

# The features that were logged of each Trainer, so that several callbacks, and a predict after a fit, log each once.
_logged: WeakKeyDictionary[pl.Trainer, set[Feature]] = WeakKeyDictionary()


class Reporter:
    """The author of a callback's reports: one for each run, made when its hooks are registered.

    Args:
        form: what is logged, one of `FORMS`: ``"full"``, ``"short"`` or ``"off"``. Refusals are logged in any case.
    """

    def __init__(self, form: str = "full") -> None:
        self._form = form
        self._last: RunReport | None = None
        self._unmasked: Mapping[Stage | None, bool] = {}

    def last(self) -> RunReport:
        """Return the report of the current run, or of the last one, and what the run has shown about padding so far.

        Raises:
            NoReport: no run has come far enough to have one.
        """
        if self._last is None:
            raise NoReport(
                "there is no report yet: it is made when a run has begun and its hooks have found their layers, in the "
                "process of the run"
            )
        return _without_masks(self._last) if any(self._unmasked.values()) else self._last

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
        self._log(trainer, build_report(trainer, pl_module, arguments, layers, refused), layers.unmasked)
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
            self._log(trainer, report, layers.unmasked)

    def _log(self, trainer: pl.Trainer, report: RunReport, unmasked: Mapping[Stage | None, bool]) -> None:
        self._last, self._unmasked = report, unmasked
        if self._form == "off":
            if report.refusals:
                log_info(refusals_in_words(report.refusals, report.dry_run))
            return
        before = _logged.setdefault(trainer, set())
        features = [feature for feature in report.features if feature not in before]
        before.update(features)
        if self._form == "short":
            log_info(in_short(report, features))
        else:
            log_info(in_words(report, features), partial(styled, report, features))


def _without_masks(report: RunReport) -> RunReport:
    """Return the report of a run whose batches are padded and have no mask."""
    hooks = (replace(plan, tokens=plan.tokens.replace(ALL_TOKENS, NO_MASK)) for plan in report.hooks)
    return replace(report, hooks=tuple(hooks))
