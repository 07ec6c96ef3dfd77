"""From numbers to colours, as in the tab in TensorBoard: maps that colour-blind eyes can read, and three scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning.choices import ScaleName
from mi_crow_lightning.figures.words import short

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

__all__ = ["ABOVE", "BELOW", "LINES", "MISSING", "SCALES", "Colours", "colours_of"]

SCALES: tuple[ScaleName, ...] = get_args(ScaleName)
"""The scales of a heatmap."""

MISSING, ABOVE, BELOW = "#bdbdbd", "#ff00c8", "#00e5ff"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of lines and bars, which colour-blind eyes tell apart (Okabe and Ito)."""

_SEQUENTIAL, _DIVERGING = "viridis", "RdBu_r"
_Floats = NDArray[np.float64]


class Colours(NamedTuple):
    """The colours of a matrix.

    Attributes:
        values: ``(L, S)``, what is drawn: the numbers, or with ``"per_layer"`` where each lies between the smallest
            and the largest of its layer, from 0 to 1. Masked where a number is not finite.
        map: the colours.
        norm: from ``values`` to 0 to 1.
        ticks: where the legend has a number, and what it says there; ``None`` for wherever matplotlib likes.
    """

    values: np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]]
    map: Colormap
    norm: Normalize
    ticks: list[tuple[float, str]] | None


def colours_of(values: _Floats, scale: ScaleName = "linear") -> Colours:
    """Return the colours of a matrix ``(L, S)`` in one of `SCALES`.

    Where there are both signs, white is zero and both sides reach equally far.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    finite = np.ma.masked_invalid(values)
    low, high = _range(finite)
    diverging = low < 0 < high
    if diverging:
        low, high = -max(-low, high), max(-low, high)
    map = colormaps[_DIVERGING if diverging else _SEQUENTIAL]
    if scale == "per_layer":
        ends = [(0.0, "largest size, negative"), (0.5, "0"), (1.0, "largest size")]
        ticks = ends if diverging else [(0.0, "smallest of the layer"), (1.0, "largest of the layer")]
        return Colours(_by_layer(finite, diverging), map, Normalize(0, 1), ticks)
    if low == high:  # one colour, the middle one
        return Colours(finite, map, Normalize(low - 1, high + 1), [(low, short(low))] if finite.count() else [])
    if scale == "symlog":
        norm, ticks = _symlog(finite, low, high)
        return Colours(finite, map, norm, ticks)
    return Colours(finite, map, Normalize(low, high), None)


def _range(finite: np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]]) -> tuple[float, float]:
    return (float(finite.min()), float(finite.max())) if finite.count() else (0.0, 0.0)


def _by_layer(
    finite: np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]], diverging: bool
) -> np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]]:
    low, high = finite.min(axis=1, keepdims=True), finite.max(axis=1, keepdims=True)  # (L, 1)
    if diverging:
        high = np.ma.maximum(abs(low), abs(high))
        low = -high
    spread = high - low
    flat = np.ma.filled(spread == 0, False)
    placed = (finite - low) / np.ma.where(flat, 1.0, spread)
    return np.ma.where(flat & ~np.ma.getmaskarray(finite), 0.5, placed)  # type: ignore[no-any-return]


def _symlog(
    finite: np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]], low: float, high: float
) -> tuple[Normalize, list[tuple[float, str]]]:
    """Return a norm that is linear near zero and logarithmic beyond, and the numbers at its quarters."""
    from matplotlib.colors import FuncNorm

    sizes = abs(finite.compressed())
    largest = max(-low, high)
    unit = max(float(sizes[sizes > 0].min()), largest * 1e-6)

    def there(value: _Floats) -> _Floats:
        placed: _Floats = np.sign(value) * np.log1p(np.abs(value) / unit)
        return placed

    def back(place: _Floats) -> _Floats:
        value: _Floats = np.sign(place) * np.expm1(np.abs(place)) * unit
        return value

    ends = there(np.array([low, high]))
    marks = back(np.linspace(ends[0], ends[1], 5))
    marks[0], marks[-1] = low, high
    return FuncNorm((there, back), vmin=low, vmax=high), [(float(mark), short(mark)) for mark in marks]
