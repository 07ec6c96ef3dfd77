"""The heatmap of one statistic: layers down, steps to the right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning._arguments import one_of
from mi_crow_lightning.choices import ScaleName, StageName
from mi_crow_lightning.figures.axes import axes_of, drawn, inches
from mi_crow_lightning.figures.colours import ABOVE, BELOW, MISSING, SCALES, Colours, colours_of
from mi_crow_lightning.figures.layers import stacks_of
from mi_crow_lightning.figures.names import label_layers, rows_of, tops_of
from mi_crow_lightning.figures.readings import Matrix, Number, matrix_of
from mi_crow_lightning.figures.words import plain, stage_title, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["columns_of", "draw_heatmap", "height_of", "plot_heatmap"]

WIDTH = 7.5
_MOST_COLUMNS, _MOST_LINES = 500, 60
_TICK = 0.6  # inches that the number of a step takes


def plot_heatmap(
    rows: Iterable[Number],
    name: str,
    *,
    stage: StageName | None = None,
    layers: str | Iterable[str] | None = None,
    scale: ScaleName = "linear",
    dataloader_idx: int | None = None,
    epochs: Mapping[int, int] | None = None,
    ax: Any = None,
) -> tuple[Figure, Axes]:
    """Draw the numbers of one statistic: one row a layer, one column a step, each stack of layers apart.

    Where there are more steps than columns fit, a column shows the number of largest size among its steps, and ``nan``
    or infinity before any other. ``nan`` is grey and hatched, infinity magenta, minus infinity cyan. A step that was
    written again, by a run that was resumed or begun again, replaces the same step and all after it.

    Args:
        rows: the numbers, in the order of writing, e.g. ``history()`` or ``read_compact(...)``.
        name: the statistic, or the first part of its tags, e.g. ``"attention_rms"``.
        stage: the stage; ``None`` for the first of ``"train"``, ``"validate"``, ``"test"``, ``"predict"`` that has it.
        layers: names of layers, or globs such as ``"*.mlp"``; ``None`` for all.
        scale: ``"linear"``, ``"symlog"`` (linear near zero and logarithmic beyond) or ``"per_layer"`` (each layer
            between its own smallest and largest number).
        dataloader_idx: the dataloader, where each has its own readings.
        epochs: the numbers of epochs by the step that each begins with, which is marked in training.
        ax: the axes to draw on; ``None`` for a new figure.

    Returns:
        The figure and its axes. ``ax.images`` holds one image for each stack.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        NothingToDraw: there are no rows.
        TypeError, ValueError: an argument is wrong; the message names what there is.

    Examples:
        >>> from mi_crow_lightning.loggers import HistoryRow
        >>> rows = [HistoryRow("train", 9, f"activations_rms/h.{i}", f"h.{i}", "rms", 1.0 + i) for i in range(3)]
        >>> fig, ax = plot_heatmap(rows, "rms")
        >>> ax.images[0].get_array().tolist()
        [[1.0], [2.0], [3.0]]
    """
    one_of("scale", scale, SCALES)
    matrix = matrix_of(rows, name, stage, layers, dataloader_idx)
    return drawn(draw_heatmap(axes_of(ax, WIDTH, height_of(matrix)), matrix, scale, epochs or {}))


def height_of(matrix: Matrix) -> float:
    """Return how high a new figure is, in inches."""
    stacks = stacks_of(matrix.layers)
    return max(2.4, min(9.5, 1.5 + 0.17 * rows_of(stacks)))


class _Columns(NamedTuple):
    """The steps as they are drawn: ``first[i]`` to ``last[i]`` in column ``i``, with ``values`` ``(L, C)``."""

    values: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    most: int  # steps in a column


def columns_of(matrix: Matrix, most: int) -> _Columns:
    """Return at most ``most`` columns: of several steps the number of largest size, nan and infinity before all."""
    count, columns = len(matrix.steps), min(len(matrix.steps), max(most, 1))
    bounds = np.arange(columns + 1) * count // columns
    # nan counts as large, and where a layer gave nothing at all as smaller than anything
    sizes = np.where(np.isnan(matrix.values), np.inf, np.abs(matrix.values))
    sizes[~matrix.known] = -1.0
    best = [start + sizes[:, start:stop].argmax(1) for start, stop in pairwise(bounds)]
    values = np.take_along_axis(matrix.values, np.stack(best, axis=1), axis=1)  # (L, C)
    return _Columns(values, matrix.steps[bounds[:-1]], matrix.steps[bounds[1:] - 1], int(np.diff(bounds).max()))


def draw_heatmap(ax: Axes, matrix: Matrix, scale: ScaleName, epochs: Mapping[int, int]) -> Axes:
    """Draw a matrix on axes."""
    stacks = stacks_of(matrix.layers)
    columns = columns_of(matrix, min(_MOST_COLUMNS, int(0.7 * ax.bbox.width)))
    colours = colours_of(columns.values, scale)
    tops = tops_of(stacks)
    place = {layer: row for row, layer in enumerate(matrix.layers)}
    for stack, top in zip(stacks, tops, strict=True):
        which = [place[layer] for layer in stack.layers]
        _draw_stack(ax, columns.values[which], colours._replace(values=colours.values[which]), top)
    ax.set(xlim=(-0.5, len(columns.first) - 0.5), ylim=(rows_of(stacks) - 0.5, -0.5), aspect="auto")
    label_layers(ax, stacks)
    _label_steps(ax, columns)
    _mark_epochs(ax, columns, epochs if matrix.series.stage == "train" else {})
    _title(ax, matrix, scale)
    _explain(ax, columns.values, colours, matrix.series.name)
    return ax


def _draw_stack(ax: Axes, values: NDArray[np.float64], colours: Colours, top: int) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    rows, columns = values.shape
    extent = (-0.5, columns - 0.5, top + rows - 0.5, top - 0.5)
    options: Any = dict(extent=extent, aspect="auto", interpolation="nearest", origin="upper")
    if np.isnan(values).any():
        box = Rectangle((-0.5, top - 0.5), columns, rows, facecolor=MISSING, edgecolor="white", hatch="////", zorder=0)
        ax.add_patch(box)
    ax.imshow(colours.values, cmap=colours.map, norm=colours.norm, **options)
    if np.isinf(values).any():
        signs = np.ma.masked_where(~np.isinf(values), np.sign(np.nan_to_num(values, posinf=1, neginf=-1)))
        ax.imshow(signs, cmap=ListedColormap([BELOW, ABOVE]), vmin=-1, vmax=1, **options)


def _label_steps(ax: Axes, columns: _Columns) -> None:
    count = len(columns.first)
    marks = range(0, count, _stride(count, most=max(2, int(inches(ax)[0] * 0.75 / _TICK))))
    ax.set_xticks(marks, [f"{columns.first[mark]:,}" for mark in marks], fontsize="small")
    several = f" (up to {columns.most} in a column: the number of largest size)" if columns.most > 1 else ""
    ax.set_xlabel(f"step{several}", loc="left")


def _stride(count: int, most: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that takes at most ``most`` of ``count``."""
    power = 1
    while True:
        for stride in (power, 2 * power, 5 * power):
            if -(-count // stride) <= most:
                return stride
        power *= 10


def _mark_epochs(ax: Axes, columns: _Columns, epochs: Mapping[int, int]) -> None:
    """Draw a line where an epoch begins, and number some of them."""
    from matplotlib.patheffects import withStroke

    begins = sorted(step for step in epochs if columns.first[0] < step <= columns.last[-1])
    if not begins or len(begins) > len(columns.first):
        return
    marks = np.searchsorted(columns.last, begins) - 0.5
    for mark in marks if len(begins) <= _MOST_LINES else ():
        around = [withStroke(linewidth=2, foreground="white", alpha=0.7)]
        ax.axvline(mark, color="0.2", linewidth=0.8, path_effects=around)
    every = -(-len(begins) // max(1, int(inches(ax)[0] * 0.75 / _TICK)))
    top = ax.secondary_xaxis("top")
    numbers = [f"epoch {epochs[step]}" for step in begins]
    top.set_xticks(marks[::every], numbers[::every], fontsize="x-small")


def _title(ax: Axes, matrix: Matrix, scale: str) -> None:
    series = matrix.series
    loader = "" if series.dataloader_idx is None else f", dataloader {series.dataloader_idx}"
    prefix = series.section.removesuffix(f"_{series.name}")
    what = f"{series.name} of {prefix}" if prefix != series.section else series.section
    scaled = {"symlog": ", symmetric log", "per_layer": ", per layer"}.get(scale, "")
    ax.set_title(f"{plain(what)} in {stage_title(series.stage)}{loader}{scaled}", loc="left", fontsize="medium")


def _explain(ax: Axes, values: NDArray[np.float64], colours: Colours, name: str) -> None:
    """Add the colours' legend, and what the cells without a colour are."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    if colours.ticks != []:
        bar = ax.figure.colorbar(ScalarMappable(colours.norm, colours.map), ax=ax, pad=0.02)
        if colours.ticks is not None:
            bar.set_ticks([at for at, _ in colours.ticks], labels=[text for _, text in colours.ticks])
            bar.minorticks_off()
        unit = unit_of(name)
        bar.ax.tick_params(labelsize="small")
        bar.set_label(plain(name) + (f" ({unit})" if unit else ""), fontsize="small")
    kinds = [
        (np.isnan(values), Patch(facecolor=MISSING, edgecolor="white", hatch="////", label="no number (nan)")),
        (values == np.inf, Patch(facecolor=ABOVE, label="inf")),
        (values == -np.inf, Patch(facecolor=BELOW, label="-inf")),
    ]
    handles = [patch for cells, patch in kinds if cells.any()]
    if handles:
        place: Any = dict(loc="upper right", bbox_to_anchor=(1, 0), borderaxespad=5, ncols=3)
        ax.legend(handles=handles, frameon=False, fontsize="x-small", **place)
