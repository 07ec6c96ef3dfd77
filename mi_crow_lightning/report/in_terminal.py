"""The report of a run for a terminal, with rich: in the width that there is, and in one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mi_crow_lightning.report.feature import Feature, Support
from mi_crow_lightning.report.run_report import (
    Cells,
    RunReport,
    feature_cells,
    head_of,
    hook_cells,
    layer_cells,
    refusals_of,
    unused_features,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["styled"]

_MOST_HOOKS = 10
_MOST_LAYERS = 8
_WHOLE = 32  # characters of a first column that are not broken: the names of hooks and of features
_STYLES = {
    Support.SUPPORTED.value: "green",
    Support.DEGRADED.value: "yellow",
    Support.UNTESTED.value: "yellow",
    Support.REFUSED.value: "bold red",
}


def styled(report: RunReport, features: Sequence[Feature]) -> list[RenderableType]:
    """Return a report as parts that rich prints one below the other.

    Args:
        report: the report.
        features: those of its features that are shown.

    Raises:
        ImportError: rich is not installed.
    """
    from rich.text import Text

    parts: list[RenderableType] = [Text(head_of(report), style="bold")]
    parts += [part for cells in _tables(report, features) if cells[1] for part in ("", _table(cells))]
    unused: list[RenderableType] = [Text(line, style="dim") for line in unused_features(features)]
    parts += unused if feature_cells(features)[1] else ["", *unused] if unused else []
    for why in refusals_of(report.refusals, report.dry_run):
        parts += ["", Text(why, style="bold red")]
    return parts


def _tables(report: RunReport, features: Sequence[Feature]) -> Iterator[Cells]:
    header, rows = hook_cells(report.hooks)
    left_out = len(rows) - _MOST_HOOKS
    yield header, [*rows[:_MOST_HOOKS], *([("...", f"{left_out} more", "", "", "")] if left_out > 0 else [])]
    yield layer_cells(report.layers, _MOST_LAYERS)
    yield feature_cells(features)


def _table(cells: Cells) -> Table:
    from rich.table import Table
    from rich.text import Text

    header, rows = cells
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    for i in kept:
        whole = i == 0 and max(len(row[i]) for row in rows) <= _WHOLE
        table.add_column(header[i], overflow="fold", no_wrap=whole)
    for row in rows:
        # As texts, since rich would read "[0, 1]" as its markup.
        table.add_row(*(Text(row[i], style=_STYLES.get(row[i], "")) for i in kept))
    return table
