"""The report in the log: as a text, so that whoever looks at a run later sees what it watched and steered."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from mi_crow_lightning.loggers.tensorboard import summary_writer
from mi_crow_lightning.report.run_report import RunReport

__all__ = ["write_report"]

_SECTION = "hook_report"  # the Activations tab and the page of a run look for it


def write_report(loggers: Iterable[object], report: RunReport, callback: str, step: int) -> None:
    """Write a report to every logger whose ``experiment`` is a ``SummaryWriter``, as ``hook_report/<run>``.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``.
        report: the report.
        callback: the callback's name among several, the last part of the tag; empty for the only one.
        step: the position on the x axis: where the run begins.
    """
    tag = "/".join(filter(None, [_SECTION, report.run, callback]))
    for logger in loggers:
        writer = summary_writer(logger)
        if writer is not None:
            writer.add_text(tag, _as_code(str(report)), step)


def _as_code(text: str) -> str:
    """Return a text as a block of code in Markdown: TensorBoard then shows it as it is, whatever names are in it."""
    return textwrap.indent("\n".join(text.splitlines()), "    ", lambda line: True)
