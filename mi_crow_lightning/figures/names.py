"""Names of layers along an axis: each stack apart, with its title, and as many names as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mi_crow_lightning.figures.axes import inches
from mi_crow_lightning.figures.layers import Stack
from mi_crow_lightning.figures.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["label_layers", "label_layers_below", "rows_of", "tops_of"]

_HEADING = 2  # rows between stacks
_LINE = 0.145  # inches that a name takes


def tops_of(stacks: Sequence[Stack]) -> list[int]:
    """Return the first row of each stack. Above each of several, rows are left free for its title."""
    tops, top = [], _HEADING if len(stacks) > 1 else 0
    for stack in stacks:
        tops.append(top)
        top += len(stack.layers) + _HEADING
    return tops


def rows_of(stacks: Sequence[Stack]) -> int:
    """Return how many rows there are, with those for titles."""
    return tops_of(stacks)[-1] + len(stacks[-1].layers)


def label_layers(ax: Axes, stacks: Sequence[Stack]) -> None:
    """Name the layers on the y axis, which has a row for each."""
    every = _every(inches(ax)[1] * 0.8, rows_of(stacks))
    ax.set_yticks(*_names(stacks, every), fontsize="small")
    first = stacks[0].title
    ax.set_ylabel(plain(first, 40) if len(stacks) == 1 and first else "layer")
    if len(stacks) > 1:
        for stack, top in zip(stacks, tops_of(stacks), strict=True):
            at: Any = dict(va="center", clip_on=True, transform=ax.get_yaxis_transform())
            ax.text(0, top - 0.5 - _HEADING / 2, plain(stack.title), fontsize="small", fontweight="bold", **at)
        ax.spines[:].set_visible(False)


def label_layers_below(ax: Axes, stacks: Sequence[Stack]) -> None:
    """Name the layers on the x axis, which has a column for each."""
    width = inches(ax)[0] * 0.8
    longest = max(len(plain(label, 30)) for stack in stacks for label in stack.labels)
    upright = longest * 0.075 * rows_of(stacks) > width and longest > 3
    every = _every(width, rows_of(stacks), _LINE if upright else max(_LINE, 0.085 * longest + 0.05))
    ax.set_xticks(*_names(stacks, every), fontsize="small", rotation=90 if upright else 0)
    first = stacks[0].title
    ax.set_xlabel(plain(first, 60) if len(stacks) == 1 and first else "layer", loc="left")
    if len(stacks) > 1:
        for stack, top in zip(stacks, tops_of(stacks), strict=True):
            at: Any = dict(ha="center", va="bottom", transform=ax.get_xaxis_transform())
            ax.text(top + (len(stack.layers) - 1) / 2, 1.01, plain(stack.title, 40), fontsize="small", **at)


def _every(room: float, rows: int, each: float = _LINE) -> int:
    """Return the rows from one name to the next."""
    return max(1, -int(-each // (room / rows)))


def _names(stacks: Sequence[Stack], every: int) -> tuple[list[int], list[str]]:
    rows = [
        (top + row, plain(stack.labels[row], 30))
        for stack, top in zip(stacks, tops_of(stacks), strict=True)
        for row in range(0, len(stack.layers), every)
    ]
    return [place for place, _ in rows], [label for _, label in rows]
