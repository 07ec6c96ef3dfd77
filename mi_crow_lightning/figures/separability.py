"""How well each layer separates two classes: AUROC and d' over the layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures.axes import axes_of, drawn
from mi_crow_lightning.figures.colours import LINES
from mi_crow_lightning.figures.layers import Stack, stacks_of
from mi_crow_lightning.figures.names import label_layers_below, rows_of, tops_of
from mi_crow_lightning.figures.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Scored", "plot_separability"]

_WIDTH, _HEIGHT = 7.5, 3.4


class Scored(Protocol):
    """The scores of one layer, such as `Separability`."""

    @property
    def layer(self) -> str: ...
    @property
    def auroc(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def d_prime(self) -> float: ...


def plot_separability(scores: Iterable[Scored], *, ax: Any = None) -> tuple[Figure, Axes]:
    """Draw AUROC, with the y axis on the left, and d', with the one on the right, over the layers.

    The dashed line is chance, an AUROC of 0.5. The ring is the layer that `ContrastDetector.best_layer` returns. A d'
    that is infinite, where a class has no spread, is a triangle at the edge.

    Args:
        scores: the scores in the order of the layers, e.g. ``ContrastDetector.separability()``.
        ax: the axes to draw on; ``None`` for a new figure.

    Returns:
        The figure and the axes of AUROC. Those of d' are the figure's next axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        NothingToDraw: there are no scores.
        TypeError: ``ax`` is not an axes.

    Examples:
        >>> from mi_crow_lightning.metrics.separability import Separability
        >>> scores = [Separability("h.0", 0.6, 8, 0.3), Separability("h.1", 1.0, 8, 2.5)]
        >>> fig, ax = plot_separability(scores)
        >>> ax.lines[0].get_ydata().tolist(), fig.axes[-1].lines[0].get_ydata().tolist()
        ([0.6, 1.0], [0.3, 2.5])
    """
    rows = {one.layer: one for one in scores}
    if not rows:
        raise NothingToDraw("there are no scores: a ContrastDetector scores its vectors on held-out samples")
    stacks = stacks_of(list(rows))
    ax = axes_of(ax, _WIDTH, _HEIGHT)
    other = ax.twinx()
    places = [np.arange(top, top + len(stack.layers)) for stack, top in zip(stacks, tops_of(stacks), strict=True)]
    _draw(ax, stacks, places, {layer: one.auroc for layer, one in rows.items()}, LINES[0], "o", "AUROC")
    _draw(other, stacks, places, {layer: one.d_prime for layer, one in rows.items()}, LINES[1], "s", "d'")
    ax.axhline(0.5, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    best = max(rows.values(), key=lambda one: (one.auroc, one.d_prime))
    at = dict(zip((layer for stack in stacks for layer in stack.layers), np.concatenate(places), strict=True))
    ax.plot(at[best.layer], best.auroc, "o", color="black", markersize=11, fillstyle="none", clip_on=False)
    ax.set(xlim=(-0.5, rows_of(stacks) - 0.5), ylim=(min(0.45, ax.get_ylim()[0]), 1.03))
    label_layers_below(ax, stacks)
    samples = sorted({one.n for one in rows.values()})
    counted = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    title = f"best: {plain(best.layer)}, {counted} held-out samples"
    ax.set_title(title, loc="left", fontsize="medium", pad=6 if len(stacks) == 1 else 18)
    return drawn(ax)


def _draw(
    ax: Axes,
    stacks: Sequence[Stack],
    places: Sequence[NDArray[np.int64]],
    values: dict[str, float],
    colour: str,
    marker: str,
    name: str,
) -> None:
    for stack, at in zip(stacks, places, strict=True):
        y = np.array([values[layer] for layer in stack.layers], dtype=np.float64)
        finite = np.where(np.isfinite(y), y, np.nan)
        ax.plot(at, finite, color=colour, marker=marker, markersize=3.5 if len(values) <= 80 else 1.5, linewidth=1.4)
        for sign, edge, shape in ((1, 1.0, "^"), (-1, 0.0, "v")):
            beyond = at[y == sign * np.inf]
            ax.plot(
                beyond,
                np.full(len(beyond), edge),
                shape,
                color=colour,
                transform=ax.get_xaxis_transform(),
                clip_on=False,
            )
    ax.set_ylabel(name, color=colour)
    ax.tick_params(axis="y", colors=colour, labelsize="small")
