"""A run's report as text: three tables, and what is refused."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from mi_crow_lightning.report.feature import Feature, Support
from mi_crow_lightning.report.table import text_table

if TYPE_CHECKING:
    from mi_crow_lightning.report.run_report import HookedLayer, HookPlan, RunReport

__all__ = ["as_text"]

_MAX_ROWS = 24
_WIDTH = 118


def as_text(report: RunReport) -> str:
    """The report, to be read in a terminal."""
    parts = [_head(report), _hook_table(report.hooks), _layer_table(report.layers), _feature_table(report.features)]
    if report.refusals:
        told = "would be refused" if report.dry_run else "is refused"
        parts.append("\n".join(_wrapped(f"This run {told}: {why}") for why in report.refusals))
    return "\n\n".join(part for part in parts if part)


def _head(report: RunReport) -> str:
    counted = f"{_count(len(report.hooks), 'hook')} on {_count(len(report.layers), 'layer')}"
    if report.dry_run:
        return f"HookCallback(dry_run=True) in {report.run}: {counted}, and nothing is attached."
    return f"HookCallback in {report.run}: {counted}."


def _hook_table(hooks: Sequence[HookPlan]) -> str:
    header = ("hook", "layers", "", "when", "tokens")
    rows = [
        (
            plan.hook,
            repr(plan.layer_signature),
            "refused" if plan.refused is not None else _count(len(plan.layers), "layer"),
            plan.when,
            plan.tokens,
        )
        for plan in hooks
    ]
    return text_table(header, rows)


def _layer_table(layers: Sequence[HookedLayer]) -> str:
    alike = [list(group) for _, group in groupby(layers, key=lambda it: (it.module, it.hooks, it.output_shape))]
    rows = [(_span(group), group[0].module, group[0].output_shape or "", ", ".join(group[0].hooks)) for group in alike]
    left_out = [("...", f"{len(rows) - _MAX_ROWS} rows more", "", "")] if len(rows) > _MAX_ROWS else []
    return text_table(("layer", "class", "output", "hooks, in the order they run"), rows[:_MAX_ROWS] + left_out)


def _span(layers: Sequence[HookedLayer]) -> str:
    if len(layers) == 1:
        return layers[0].name
    return f"{layers[0].name} to {layers[-1].name} ({len(layers)})"


def _feature_table(features: Sequence[Feature]) -> str:
    used = [feature for feature in features if feature.support is not Support.NOT_USED]
    unused = [feature.name for feature in features if feature.support is Support.NOT_USED]
    rows = [(feature.name, feature.value, feature.support.value, feature.note) for feature in used]
    # A refusal's reason stands below the tables.
    shown = [(*row[:3], "see below") if row[2] == Support.REFUSED else row for row in rows]
    table = text_table(("this run uses", "", "", ""), shown)
    return f"{table}\nnot used: {', '.join(unused)}" if unused else table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
