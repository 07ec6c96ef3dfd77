"""Texts of predict runs, as an event file of anybody's holds them: looked at before the page gets them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["texts_of"]

_MOST_POINTS = 20  # predict runs of one log, of one stage and dataloader
_MOST_ROWS = 2000
_LARGEST = 4_000_000  # bytes of a row
_MOST_BYTES = 32_000_000


def texts_of(points: Iterable[tuple[int, float, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Return the texts of one stage and dataloader, and how many rows are left out.

    Args:
        points: the points of a time series: step, wall time, and an array of rows as JSON.

    Returns:
        For each step ``{"step": ..., "rows": [...]}``, in which a row has the fields of `TextRow` that the page shows;
        of a step that was written twice what was written last. The last steps are kept if there are very many.
    """
    by_step: dict[int, tuple[float, Any]] = {}
    for step, time, value in points:
        if step not in by_step or time >= by_step[step][0]:
            by_step[step] = time, value
    found: list[dict[str, Any]] = []
    left_out, room, size = 0, _MOST_ROWS, _MOST_BYTES
    for step in sorted(by_step, reverse=True):
        contents = np.asarray(by_step[step][1]).reshape(-1).tolist()
        if len(found) == _MOST_POINTS:
            left_out += len(contents)
            continue
        rows = []
        for content in contents:
            fits = isinstance(content, bytes) and len(content) <= min(_LARGEST, size) and room > 0
            row = _row(content) if fits else None
            if row is None:
                left_out += 1
            else:
                rows.append(row)
                room, size = room - 1, size - len(content)
        found.insert(0, {"step": step, "rows": rows})
    return found, left_out


def _row(content: bytes) -> dict[str, Any] | None:
    """Return what the page shows of a row; ``None`` if it is not one."""
    try:
        read = json.loads(content)
        marks = read["touched"]
        tokens = read["tokens"]
        fits = (
            _are_texts(tokens)
            and isinstance(marks, dict)
            and all(_are_marks(of_hook, len(tokens)) for of_hook in marks.values())
            and isinstance(read["unmarked"], dict)
            and _are_texts(list(read["unmarked"].values()))
            and all(isinstance(read[key], (str, type(None))) for key in ("prompt", "text"))
            and all(_is_count(read[key]) for key in ("row", "sequence", "prompt_tokens"))
            and all(map(_is_count, [*read["special"], *read["left_out"]]))
            and len(read["left_out"]) == 2
            and isinstance(read["joined"], bool)
            and _is_strength(read["strength"])
        )
        return {key: read[key] for key in _KEYS} if fits else None
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return None


_KEYS = (
    *("row", "prompt", "strength", "sequence", "text", "tokens", "prompt_tokens", "special", "joined"),
    *("touched", "unmarked", "left_out"),
)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_marks(value: Any, size: int) -> bool:
    return isinstance(value, str) and len(value) == size and set(value) <= set("01-")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_strength(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
