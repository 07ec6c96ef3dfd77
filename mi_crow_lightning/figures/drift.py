"""How far each layer moved from a reference: cosine, CKA and norm ratio over the layers, and the angle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures.axes import axes_of, drawn
from mi_crow_lightning.figures.colours import LINES
from mi_crow_lightning.figures.layers import stacks_of
from mi_crow_lightning.figures.names import label_layers_below, rows_of, tops_of
from mi_crow_lightning.figures.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Moved", "plot_drift"]

_WIDTH, _HEIGHT = 7.5, 3.4
_CURVES = (("cosine", "cosine", "o"), ("cka", "linear CKA", "s"), ("norm_ratio", "norm ratio", "^"))


class Moved(Protocol):
    """The drift of one layer, such as `LayerDrift`."""

    @property
    def layer(self) -> str: ...
    @property
    def cosine(self) -> float: ...
    @property
    def norm_ratio(self) -> float: ...
    @property
    def cka(self) -> float: ...
    @property
    def angle(self) -> float: ...


def plot_drift(rows: Iterable[Moved], *, ax: Any = None) -> tuple[Figure, Axes]:
    """Draw cosine, linear CKA and norm ratio (y axis on the left) and the angle (on the right) over the layers.

    The dashed line is 1, no drift. The ring is the layer with the smallest cosine.

    Args:
        rows: in the order of the layers, e.g. ``DriftDetector.table()``.
        ax: the axes to draw on; ``None`` for a new figure.

    Returns:
        The figure and the axes on the left. Those of the angle are the figure's next axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        NothingToDraw: there are no rows.
        TypeError: ``ax`` is not an axes.

    Examples:
        >>> from mi_crow_lightning.references import LayerDrift
        >>> rows = [LayerDrift("h.0", 0, 1.0, 1.0, 1.0, 1.0, 0.0, 8), LayerDrift("h.1", 1, 0.9, 0.5, 1.1, 0.8, 9.0, 8)]
        >>> fig, ax = plot_drift(rows)
        >>> ax.lines[0].get_ydata().tolist(), fig.axes[-1].lines[0].get_ydata().tolist()
        ([1.0, 0.9], [0.0, 9.0])
    """
    by_layer = {one.layer: one for one in rows}
    if not by_layer:
        raise NothingToDraw("there are no rows: a DriftDetector compares layers in a run")
    stacks = stacks_of(list(by_layer))
    ax = axes_of(ax, _WIDTH, _HEIGHT)
    other = ax.twinx()
    most = min(by_layer.values(), key=lambda one: one.cosine)
    size = 3.5 if len(by_layer) <= 80 else 1.5
    for number, (stack, top) in enumerate(zip(stacks, tops_of(stacks), strict=True)):
        at = np.arange(top, top + len(stack.layers))
        of_stack = [by_layer[layer] for layer in stack.layers]
        for (field, label, marker), colour in zip(_CURVES, LINES, strict=False):
            values = [getattr(one, field) for one in of_stack]
            name = label if not number else None
            ax.plot(at, values, color=colour, marker=marker, markersize=size, linewidth=1.4, label=name)
        angles = [one.angle for one in of_stack]
        other.plot(at, angles, color="0.45", marker="x", markersize=size, linewidth=1.0, linestyle=":")
        if most.layer in stack.layers:
            place = at[stack.layers.index(most.layer)]
            ax.plot(place, most.cosine, "o", color="black", markersize=11, fillstyle="none", clip_on=False)
    pad = 6 if len(stacks) == 1 else 18
    ax.set_title(f"moved most: {plain(most.layer)}", loc="left", fontsize="medium", pad=pad)
    ax.axhline(1.0, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    ax.set_xlim(-0.5, rows_of(stacks) - 0.5)
    other.set_ylim(0, max(5.0, other.get_ylim()[1]))
    other.set_ylabel("largest principal angle, degrees", color="0.35")
    ax.legend(frameon=False, fontsize="small", loc="best")
    label_layers_below(ax, stacks)
    return drawn(ax)
