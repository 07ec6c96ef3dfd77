"""A measure over strengths: that of a vector, beside those of random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning._arguments import one_of
from mi_crow_lightning._arguments import plain as numbers_in
from mi_crow_lightning._shown import shown
from mi_crow_lightning.figures.axes import axes_of, drawn
from mi_crow_lightning.figures.colours import LINES
from mi_crow_lightning.figures.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_sweep"]

Band: TypeAlias = Literal["range", "deviation"]

_WIDTH, _HEIGHT = 6.0, 3.6


def plot_sweep(
    strengths: Any,
    values: Any,
    random: Any = None,
    *,
    measure: str = "measure",
    label: str = "vector",
    band: Band = "range",
    ax: Any = None,
) -> tuple[Figure, Axes]:
    """Draw a measure over the strengths of a sweep, before the band of what random vectors of the same length achieve.

    The band reaches from the smallest to the largest of the random vectors; thin lines are these one by one. Whatever
    lies in the band is not due to the direction. A further random vector lies outside of the band of ``R`` with a
    chance of ``2 / (R + 1)``: of 8, in 2 of 9 cases.

    Args:
        strengths: ``(S,)``, in any order.
        values: ``(S,)``, the measure with the vector at each strength.
        random: ``(R, S)``, the measure with each of ``R`` random vectors; ``None`` for no band. Make them with
            `SteeringVector.random_controls`.
        measure: the name of the measure, with its unit.
        label: the name of the vector.
        band: what the band shows of the random vectors: ``"range"``, from the smallest to the largest, or
            ``"deviation"``, the mean and one standard deviation (of the sample, divided by ``R - 1``) to both sides.
        ax: the axes to draw on; ``None`` for a new figure.

    Returns:
        The figure and its axes. ``ax.lines[0]`` is the vector's line; the thin ones follow.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError, ValueError: the numbers do not fit together.

    Examples:
        >>> fig, ax = plot_sweep([0, 2, 4], [1.0, 2.0, 3.5], [[1.0, 1.2, 0.8], [1.0, 0.9, 1.1]])
        >>> ax.lines[0].get_ydata().tolist()
        [1.0, 2.0, 3.5]
    """
    one_of("band", band, get_args(Band))
    x = _numbers("strengths", strengths, 1)
    order = np.argsort(x, kind="stable")
    y = _numbers("values", values, 1)
    controls = _numbers("random", random, 2) if random is not None else np.empty((0, len(x)))
    for name, given in (("values", y), ("random", controls)):
        if given.shape[-1] != len(x):
            raise ValueError(f"{name} has {given.shape[-1]} numbers a vector, and there are {len(x)} strengths")
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(f"strengths={shown(numbers_in(strengths))} must be finite numbers, at least one")
    ax = axes_of(ax, _WIDTH, _HEIGHT)
    ax.plot(x[order], y[order], "o-", color=LINES[0], linewidth=2, markersize=4, label=plain(label), zorder=4)
    _draw_controls(ax, x[order], controls[:, order], band)
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set(xlabel="strength", ylabel=plain(measure))
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return drawn(ax)


def _draw_controls(ax: Axes, x: NDArray[np.float64], controls: NDArray[np.float64], band: Band) -> None:
    count = len(controls)
    for i, row in enumerate(controls):
        name = ("one random vector" if count == 1 else "each random vector") if i == 0 else None
        ax.plot(x, row, color="0.55", linewidth=0.7, alpha=0.7, label=name, zorder=2)
    if count > 1:
        mean, deviation = controls.mean(0), controls.std(0, ddof=1)
        ax.plot(x, mean, "--", color="0.25", linewidth=1.4, label=f"mean of {count} random vectors", zorder=3)
        if band == "range":
            low, high, name = controls.min(0), controls.max(0), "from the smallest to the largest"
        else:
            low, high, name = mean - deviation, mean + deviation, "one standard deviation"
        ax.fill_between(x, low, high, zorder=1, color="0.6", alpha=0.3, linewidth=0, label=name)


def _numbers(name: str, value: Any, dims: int) -> NDArray[np.float64]:
    """Return numbers as an array of ``dims`` dimensions, wherever they come from."""
    what = "(S,), one for each strength" if dims == 1 else "(R, S), a row for each random vector"
    try:
        listed = [numbers_in(one) for one in value] if isinstance(value, (list, tuple)) else numbers_in(value)
        array = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={shown(value)} must be numbers {what}") from None
    if array.ndim != dims:
        raise ValueError(f"{name} has the shape {array.shape}, but must be {what}")
    return array
