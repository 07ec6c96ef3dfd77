"""Points of several time series, joined to one matrix: step by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Columns", "Histograms", "Matrix", "Point", "joined", "stacked"]

Point = tuple[int, float, Any]
"""Step, wall time and value."""


class Matrix(NamedTuple):
    """One statistic of one run.

    Attributes:
        layers: ``L`` names.
        steps: ``(S,)`` float64, ascending.
        times: ``(S,)`` float64, when each step was written, in seconds.
        values: ``(S, L)`` float32, ``nan`` where a layer gave none.
        left_out: how many points did not fit their schema.
    """

    layers: tuple[str, ...]
    steps: NDArray[np.float64]
    times: NDArray[np.float64]
    values: NDArray[np.float32]
    left_out: int = 0


class Columns(NamedTuple):
    """Points of one time series, and the layers of their numbers."""

    layers: tuple[str, ...]
    points: Iterable[Point]


class Histograms(NamedTuple):
    """Histograms of one layer that have the same bins.

    Attributes:
        edges: ``(B + 1,)`` float64, ascending.
        steps: ``(S,)`` float64, ascending.
        counts: ``(S, B)`` float64.
    """

    edges: NDArray[np.float64]
    steps: NDArray[np.float64]
    counts: NDArray[np.float64]


def joined(columns: Iterable[Columns]) -> Matrix:
    """Join time series of one statistic: their layers side by side, their steps in order.

    Where a resumed run repeated a step, what was written last counts.

    Examples:
        >>> h, late = Columns(("h.0",), [(1, 0.0, np.ones(1)), (3, 2.0, np.ones(1))]), [(3, 5.0, np.zeros(2))]
        >>> joined([h, Columns(("h.0", "h.1"), late)]).values
        array([[ 1., nan],
               [ 0.,  0.]], dtype=float32)
    """
    columns = list(columns)
    layers = tuple(dict.fromkeys(layer for one in columns for layer in one.layers))
    at = {layer: index for index, layer in enumerate(layers)}
    found: list[tuple[float, int, list[int], NDArray[np.float32]]] = []
    left_out = 0
    for one in columns:
        places = [at[layer] for layer in one.layers]
        for step, time, value in one.points:
            row = _numbers(value, len(places))
            if row is None:
                left_out += 1
            else:
                found.append((time, step, places, row))
    found.sort(key=lambda point: point[0])  # so that what was written last is filled in last
    steps = np.array(sorted({step for _, step, _, _ in found}), dtype=np.float64)
    row_of = {int(step): index for index, step in enumerate(steps)}
    values = np.full((len(steps), len(layers)), np.nan, dtype=np.float32)
    times = np.zeros(len(steps))
    for time, step, places, row in found:
        values[row_of[step], places] = row
        times[row_of[step]] = time
    return Matrix(layers, steps, times, values, left_out)


def stacked(edges: NDArray[np.float64], points: Iterable[Point]) -> Histograms:
    """Stack histograms that have the same bins, in the order of their steps; of a repeated step, the last."""
    by_step: dict[int, tuple[float, NDArray[np.float64]]] = {}
    for step, time, value in points:
        counts = _counts(value, len(edges) - 1)
        if counts is not None and (step not in by_step or time >= by_step[step][0]):
            by_step[step] = time, counts
    steps = sorted(by_step)
    rows = [by_step[step][1] for step in steps]
    counts = np.array(rows, dtype=np.float64).reshape(len(rows), len(edges) - 1)
    return Histograms(edges, np.array(steps, dtype=np.float64), counts)


def _numbers(value: Any, size: int) -> NDArray[np.float32] | None:
    array = np.asarray(value)
    if array.shape != (size,) or array.dtype.kind not in "fiu":
        return None
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _counts(value: Any, size: int) -> NDArray[np.float64] | None:
    array = np.asarray(value)
    return array.astype(np.float64) if array.shape == (size,) and array.dtype.kind in "fiu" else None
