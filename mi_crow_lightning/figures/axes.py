"""Where a figure is drawn: on the axes that were given, in a new figure of pyplot, or in one that pyplot never sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._shown import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axes_of", "bare_axes", "check_matplotlib", "drawn", "inches"]


def check_matplotlib(why: str = "a figure") -> None:
    """Refuse to go on without matplotlib.

    Args:
        why: what needs it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{why} needs matplotlib, which is not installed: pip install 'mi-crow-lightning[plot]'", name="matplotlib"
        ) from error


def axes_of(ax: Any, width: float, height: float) -> Axes:
    """Return the axes to draw on: those that were given, or those of a new figure, which a notebook shows.

    Args:
        ax: axes of matplotlib, or ``None``.
        width: of a new figure, in inches.
        height: of a new figure, in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: ``ax`` is something else.
    """
    check_matplotlib()
    from matplotlib.axes import Axes

    if ax is None:
        from matplotlib import pyplot

        return pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax={shown(ax)} must be axes of matplotlib, such as the second result of plt.subplots()")
    return ax


def bare_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure that no window shows and pyplot does not keep."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def drawn(ax: Axes) -> tuple[Figure, Axes]:
    """Return the result of a figure's function."""
    figure: Any = ax.figure
    return figure, ax


def inches(ax: Axes) -> tuple[float, float]:
    """Return width and height of axes."""
    dpi: float = ax.figure.dpi
    return ax.bbox.width / dpi, ax.bbox.height / dpi
