"""The histograms of one layer over the steps: a heatmap, or one curve a step, one above another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning._arguments import one_of
from mi_crow_lightning.choices import HistogramKind, StageName
from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures.axes import axes_of, drawn, inches
from mi_crow_lightning.figures.layers import layer_of
from mi_crow_lightning.figures.readings import Series, Written, one_series, series_of, written_last
from mi_crow_lightning.figures.words import plain, short, stage_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Counted", "plot_histogram"]

KINDS: tuple[HistogramKind, ...] = get_args(HistogramKind)
_WIDTH, _HEIGHT = 7.5, 4.2
_MOST_COLUMNS, _MOST_RIDGES = 400, 12
_EDGES = 11  # edges with a number


class Counted(Written, Protocol):
    """The histogram of one layer at one step, such as `HistogramRow`."""

    @property
    def edges(self) -> tuple[float, ...]: ...
    @property
    def counts(self) -> Iterable[float]: ...


def plot_histogram(
    rows: Iterable[Counted],
    layer: str | int,
    *,
    stage: StageName | None = None,
    name: str = "histogram",
    kind: HistogramKind = "heat",
    dataloader_idx: int | None = None,
    ax: Any = None,
) -> tuple[Figure, Axes]:
    """Draw how the activations of one layer are spread, over the steps.

    Each bin shows its share of the elements counted at that step, bins as they come: those of `ActivationStatistics`
    double in width with their distance from 0. Where there are more steps than columns fit, the counts of neighbouring
    steps are added up.

    Args:
        rows: the histograms, in the order of writing, e.g. ``read_compact_histograms(...)``.
        layer: the layer: its name, the end of it, or the number of a block.
        stage: the stage; ``None`` for the first of ``"train"``, ``"validate"``, ``"test"``, ``"predict"`` that has it.
        name: the name of the reading.
        kind: ``"heat"``: a column a step. ``"ridge"``: a curve a step, of at most 12 steps spread over the run.
        dataloader_idx: the dataloader, where each has its own readings.
        ax: the axes to draw on; ``None`` for a new figure.

    Returns:
        The figure and its axes. ``ax.images[0]`` holds the shares, ``(bins, steps)``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        NothingToDraw: there are no histograms.
        TypeError, ValueError: an argument is wrong; the message names what there is.

    Examples:
        >>> from mi_crow_lightning.loggers import HistogramRow
        >>> counts = [(6.0, 2.0), (4.0, 4.0)]
        >>> rows = [HistogramRow("train", i, "a/h.0", "h.0", "histogram", (-1.0, 0.0, 1.0), counts[i]) for i in (0, 1)]
        >>> fig, ax = plot_histogram(rows, "h.0")
        >>> ax.images[0].get_array().tolist()
        [[0.75, 0.5], [0.25, 0.5]]
    """
    one_of("kind", kind, KINDS)
    shares = _shares_of(rows, layer, stage, name, dataloader_idx)
    ax = axes_of(ax, _WIDTH, _HEIGHT)
    _draw_heat(ax, shares) if kind == "heat" else _draw_ridges(ax, shares)
    loader = "" if shares.series.dataloader_idx is None else f", dataloader {shares.series.dataloader_idx}"
    ax.set_title(
        f"{plain(name)} of {plain(shares.layer)} in {stage_title(shares.series.stage)}{loader}{shares.left_out}",
        loc="left",
        fontsize="medium",
    )
    return drawn(ax)


class _Shares(NamedTuple):
    """The histograms of one layer, as shares of all elements: ``values`` ``(bins, S)``, without empty bins outside."""

    series: Series
    layer: str
    steps: list[int]
    edges: list[float]
    values: NDArray[np.float64]
    left_out: str


def _shares_of(
    rows: Iterable[Counted], layer: str | int, stage: str | None, name: str, dataloader_idx: int | None
) -> _Shares:
    found: dict[Series, list[Counted]] = {}
    for row in rows:
        found.setdefault(series_of(row), []).append(row)
    if not found:
        raise NothingToDraw(
            "there are no histograms yet: ActivationStatistics(histogram=True) makes them, at the logged steps of "
            "training and at the end of validation, test and predict"
        )
    series = one_series(found, name, stage, dataloader_idx)
    one = layer_of(list(dict.fromkeys(row.layer for row in found[series])), layer)
    columns = written_last((row for row in found[series] if row.layer == one), lambda row: row)
    kept = [column[one] for column in columns.values()]
    same = [row for row in kept if row.edges == kept[-1].edges]
    others = len(kept) - len(same)
    counts = np.array([list(row.counts) for row in same], dtype=np.float64).T  # (bins, S)
    filled = np.flatnonzero(counts.sum(1))
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, len(counts) - 1)
    return _Shares(
        series,
        one,
        [row.step for row in same],
        list(kept[-1].edges[first : last + 2]),
        counts[first : last + 1],
        f" (without {others} steps that have other bins)" if others else "",
    )


def _normal(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    totals = counts.sum(0)
    shares: NDArray[np.float64] = counts / np.where(totals > 0, totals, 1.0)
    return shares


def _draw_heat(ax: Axes, shares: _Shares) -> None:
    count = len(shares.steps)
    columns = min(count, _MOST_COLUMNS, max(1, int(0.7 * ax.bbox.width)))
    bounds = np.arange(columns + 1) * count // columns
    values = _normal(np.add.reduceat(shares.values, bounds[:-1], axis=1))
    image = ax.imshow(
        np.ma.masked_equal(values, 0.0), aspect="auto", interpolation="nearest", origin="lower", cmap="YlGnBu", vmin=0
    )
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, format=lambda share, _: f"{100 * share:.3g} %")
    bar.set_label("share of the elements", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    marks = np.unique(np.linspace(0, columns - 1, max(2, min(columns, int(inches(ax)[0])))).round().astype(int))
    ax.set_xticks(marks, [f"{shares.steps[bounds[mark]]:,}" for mark in marks], fontsize="small")
    ax.set_xlabel("step", loc="left")
    places, labels = _edge_marks(shares.edges)
    ax.set_yticks(places, labels, fontsize="small")
    ax.set_ylabel("activation")


def _draw_ridges(ax: Axes, shares: _Shares) -> None:
    count = len(shares.steps)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST_RIDGES)).round().astype(int))
    values = _normal(shares.values)[:, chosen]
    height = 1.8 / (values.max() or 1.0)
    x = np.arange(len(values))
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(chosen)))
    for row in reversed(range(len(chosen))):  # the lower ones in front
        ax.fill_between(x, row, row + height * values[:, row], color=colours[row], alpha=0.6, zorder=2 * (count - row))
        ax.plot(x, row + height * values[:, row], color="0.15", linewidth=0.8, zorder=2 * (count - row) + 1)
    ax.set_yticks(range(len(chosen)), [f"{shares.steps[place]:,}" for place in chosen], fontsize="small")
    ax.set_ylabel("step")
    places, labels = _edge_marks(shares.edges)
    ax.set_xticks(places, labels, fontsize="small")
    ax.set_xlabel("activation; each curve is the share of the elements in a bin", loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _edge_marks(edges: list[float]) -> tuple[list[float], list[str]]:
    """Return where some of the edges lie among the bins, and what they are called; zero is in the middle of its bin."""
    zero = next((i for i in range(len(edges) - 1) if edges[i] < 0 < edges[i + 1]), None)
    every = max(1, -(-len(edges) // _EDGES))
    if zero is None:
        marks = [(i - 0.5, _edge(edges[i])) for i in range(0, len(edges), every)]
    else:
        below, above = range(zero + 1 - every, -1, -every), range(zero + every, len(edges), every)
        marks = [(i - 0.5, _edge(edges[i])) for i in [*reversed(below), *above] if abs(i - 0.5 - zero) >= every / 2]
        marks.append((float(zero), "0"))
        marks.sort()
    return [place for place, _ in marks], [label for _, label in marks]


def _edge(edge: float) -> str:
    mantissa, exponent = math.frexp(abs(edge))
    if mantissa == 0.5 and not -3 <= exponent - 1 <= 10:
        return f"${'-' if edge < 0 else ''}2^{{{exponent - 1}}}$"
    return short(edge)
