"""How much of a run's report is logged: an argument of the callback, or a variable of the environment."""

from __future__ import annotations

import os
from typing import get_args

from mi_crow_lightning._arguments import not_known, one_of
from mi_crow_lightning.choices import ReportForm

__all__ = ["FORMS", "VARIABLE", "form_of"]

FORMS: tuple[ReportForm, ...] = get_args(ReportForm)
"""The forms of a report: all of it, a line or two, or only refusals."""

VARIABLE = "MI_CROW_LIGHTNING_REPORT"
"""The environment variable that says it where no argument does."""


def form_of(given: str | None) -> str:
    """Return the form that is meant: what was given, else what the environment says, else ``"full"``.

    Raises:
        ValueError: it is not one of `FORMS`; the message names the argument, or the variable.

    Examples:
        >>> form_of("short")
        'short'
    """
    if given is not None:
        return one_of("report", given, FORMS)
    value = os.environ.get(VARIABLE) or "full"
    if value not in FORMS:
        raise not_known(f"the environment variable {VARIABLE}", value, FORMS)
    return value
