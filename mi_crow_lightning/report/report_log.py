"""Logging and keeping the report of each run of a callback, whichever Trainer runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

from mi_crow_lightning.errors import NoReport
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.report.feature import Feature
from mi_crow_lightning.report.in_terminal import styled
from mi_crow_lightning.report.in_words import ALL_TOKENS, NO_MASK
from mi_crow_lightning.report.info_log import log_info
from mi_crow_lightning.report.run_report import RunReport, in_short, in_words, refusals_in_words

__all__ = ["ReportLog"]

# The features that were logged of each Trainer, so that several callbacks, and a predict after a fit, log each once.
_logged: WeakKeyDictionary[object, set[Feature]] = WeakKeyDictionary()


class ReportLog:
    """A log of a callback's reports, one for each run.

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

    def log(self, trainer: object, report: RunReport, unmasked: Mapping[Stage | None, bool]) -> None:
        """Log and keep the report of a run that begins.

        Args:
            trainer: the Trainer: what was logged of it before is not logged again.
            report: the report.
            unmasked: by stage, whether batches were padded without a mask; filled as the run goes on.
        """
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
