"""Heatmaps as images for loggers, drawn without pyplot: no window, no figure that stays open, no change of backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from mi_crow_lightning.figures.axes import bare_axes
from mi_crow_lightning.figures.heatmap import WIDTH, draw_heatmap, height_of
from mi_crow_lightning.figures.readings import Number, Series, matrix_of

__all__ = ["Image", "heatmap_image"]


class Image(NamedTuple):
    """An image file.

    Attributes:
        png: its bytes.
        width: in pixels.
        height: in pixels.
    """

    png: bytes
    width: int
    height: int


def heatmap_image(rows: Iterable[Number], series: Series, epochs: Mapping[int, int]) -> Image:
    """Return the heatmap of one series as `plot_heatmap` draws it.

    Args:
        rows: the numbers, in the order of writing.
        series: which of them.
        epochs: the numbers of epochs by the step that each begins with.
    """
    matrix = matrix_of(rows, series.section, series.stage, dataloader_idx=series.dataloader_idx)
    matrix = matrix._replace(layers=tuple(map(_in_ascii, matrix.layers)))
    ax = draw_heatmap(bare_axes(WIDTH, height_of(matrix)), matrix, "linear", epochs)
    file, canvas = BytesIO(), _canvas(ax)
    canvas.print_png(file)
    return Image(file.getvalue(), *canvas.get_width_height())


def _in_ascii(name: str) -> str:
    """Return a name in letters that every font has: matplotlib warns of others, and a run should not."""
    return name.encode("ascii", "backslashreplace").decode()


def _canvas(ax: Any) -> Any:
    return ax.figure.canvas
