"""Events of a run: the texts of tensors, as rows for the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mi_crow_lightning.tensorboard_plugin.joining import Point

__all__ = ["COLUMNS", "LONGEST", "MOST", "events_of"]

COLUMNS = ("kind", "text", "hook", "layer")
"""The columns of a tensor of events."""

LONGEST = 1000
"""The most characters of a text that are passed on."""

MOST = 5000
"""The most events of a run that are passed on: a run writes 200, and may be resumed often."""

Row = dict[str, Any]


def events_of(series: Iterable[tuple[str, Iterable[Point]]]) -> tuple[list[Row], int]:
    """Return the events of several time series in the order of their steps, and how much is left out.

    A point that holds something else is left out, and so are the last of too many events.

    A step that got more events was written again, with those that it had: of the points of a step, the last counts.

    Args:
        series: stage and points of each.

    Examples:
        >>> early, late = (np.array([["switch", text, "", ""]], dtype=object) for text in ("on", "off"))
        >>> events_of([("train", [(7, 0.0, early), (7, 1.0, np.concatenate([early, late]))])])[0][1]
        {'stage': 'train', 'step': 7, 'kind': 'switch', 'text': 'off', 'hook': '', 'layer': ''}
    """
    rows: list[tuple[int, float, int, Row]] = []
    left_out = 0
    for stage, points in series:
        last: dict[int, tuple[float, list[tuple[str, ...]]]] = {}
        for step, time, value in points:
            texts = _texts(value)
            if texts is None:
                left_out += 1
            elif step not in last or time >= last[step][0]:
                last[step] = time, texts
        for step, (time, texts) in last.items():
            for place, row in enumerate(texts):
                rows.append((step, time, place, {"stage": stage, "step": step, **dict(zip(COLUMNS, row, strict=True))}))
    rows.sort(key=lambda row: row[:3])
    return [row[3] for row in rows[:MOST]], left_out + max(len(rows) - MOST, 0)


def _texts(value: Any) -> list[tuple[str, ...]] | None:
    array = np.asarray(value)
    if array.ndim != 2 or array.shape[1] != len(COLUMNS) or array.dtype.kind not in "OSU":
        return None
    return [tuple(map(_text, row)) for row in array.tolist()]


def _text(cell: object) -> str:
    text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
    return text[:LONGEST]
