"""The changes that controllers made: how large, at which layer, in which stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures.axes import axes_of, drawn, inches
from mi_crow_lightning.figures.colours import LINES
from mi_crow_lightning.figures.layers import Stack, stacks_of
from mi_crow_lightning.figures.names import label_layers, rows_of, tops_of
from mi_crow_lightning.figures.words import STAGES, plain, stage_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Changed", "plot_effects"]

_WIDTH = 7.5
_COLOURS: dict[str, str] = dict(zip(STAGES, (LINES[0], LINES[2], LINES[4], LINES[1]), strict=True))
_TEXT = 0.09  # inches that a number of tokens takes


class Changed(Protocol):
    """The changes that one hook made at one layer in one stage, such as `Effect`."""

    @property
    def hook(self) -> str: ...
    @property
    def layer(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def mean_ratio(self) -> float: ...
    @property
    def max_ratio(self) -> float: ...
    @property
    def broken(self) -> int: ...


def plot_effects(effects: Iterable[Changed], *, ax: Any = None) -> tuple[Figure, Axes]:
    """Draw how large the changes of each controller were, next to the activations that it changed.

    A bar reaches to the mean ``|change| / |activation|`` of the changed tokens, a line to the largest; the number at
    the end is that of the changed tokens. Each stage has its colour. A cross marks tokens that were turned into
    NaN or infinity.

    Args:
        effects: the changes, e.g. ``HookCallback.effects()``.
        ax: the axes to draw on; ``None`` for a new figure.

    Returns:
        The figure and its axes. ``ax.containers`` holds the bars of each stage.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        NothingToDraw: nothing was counted.
        TypeError: ``ax`` is not an axes.

    Examples:
        >>> from mi_crow_lightning.hooks.effects import Effect
        >>> fig, ax = plot_effects([Effect("SteeringController", "h.2", "predict", 20, 5, 0.5, 0.75)])
        >>> [float(bar.get_width()) for bar in ax.containers[0]]
        [0.5]
    """
    counted = list(effects)
    if not counted:
        raise NothingToDraw(
            "there are no effects yet: a controller's changes are counted at the end of validation, test and predict, "
            "and at the logged steps of training"
        )
    hooks = _by_hook(counted)
    stages = [stage for stage in STAGES if any(one.stage == stage for one in counted)]
    ax = axes_of(ax, _WIDTH, max(1.8, min(9.5, 1.3 + (0.08 + 0.14 * len(stages)) * rows_of(hooks))))
    rows = _rows(counted, hooks)
    with_tokens = inches(ax)[1] * 0.75 / rows_of(hooks) / len(stages) > _TEXT
    for place, stage in enumerate(stages):
        of_stage = [one for one in counted if one.stage == stage]
        _draw_stage(ax, stage, of_stage, rows, (place + 0.5) / len(stages), 0.8 / len(stages), with_tokens)
    ax.margins(x=0.14 if with_tokens else 0.03)
    ax.set_xlim(left=0)
    ax.set_ylim(rows_of(hooks) - 0.5, -0.5)
    ax.set_xlabel("|change| / |activation| of the changed tokens", loc="left")
    label_layers(ax, hooks)
    ax.set_ylabel("layer")
    ax.spines["bottom"].set_visible(True)
    ax.set_title(_title(hooks), loc="left", fontsize="medium")
    place_below: Any = dict(loc="upper right", bbox_to_anchor=(1, 0), borderaxespad=5, ncols=6)
    ax.legend(handles=_legend(ax), frameon=False, fontsize="x-small", **place_below)
    return drawn(ax)


def _legend(ax: Axes) -> list[Any]:
    """Return what the legend explains, each once: several stages may draw the same."""
    handles, labels = ax.get_legend_handles_labels()
    return list(dict(zip(labels, handles, strict=True)).values())


def _rows(effects: Sequence[Changed], hooks: Sequence[Stack]) -> dict[tuple[str, str], int]:
    """Return the row of each hook and layer."""
    names = dict.fromkeys(one.hook for one in effects)
    return {
        (name, layer): top + row
        for name, hook, top in zip(names, hooks, tops_of(hooks), strict=True)
        for row, layer in enumerate(hook.layers)
    }


def _by_hook(effects: Sequence[Changed]) -> list[Stack]:
    """Return the layers of each hook, in the order of the model."""
    layers: dict[str, dict[str, None]] = {}
    for one in effects:
        layers.setdefault(one.hook, {})[one.layer] = None
    return [_of_hook(hook, tuple(of_hook)) for hook, of_hook in layers.items()]


def _of_hook(hook: str, layers: tuple[str, ...]) -> Stack:
    stacks = stacks_of(layers)
    if len(stacks) > 1 or not stacks[0].title:
        return Stack(hook, layers, layers)
    return Stack(f"{hook} at {stacks[0].title}", layers, stacks[0].labels)


def _title(hooks: Sequence[Stack]) -> str:
    return f"changes of {plain(hooks[0].title, 40)}" if len(hooks) == 1 else "changes of controllers"


def _draw_stage(
    ax: Axes,
    stage: str,
    effects: Sequence[Changed],
    rows: dict[tuple[str, str], int],
    place: float,
    height: float,
    with_tokens: bool,
) -> None:
    y = np.array([rows[one.hook, one.layer] for one in effects]) - 0.4 + 0.8 * place
    mean = np.array([one.mean_ratio for one in effects], dtype=float)
    most = np.array([one.max_ratio for one in effects], dtype=float)
    shown, colour = np.nan_to_num(mean, nan=0.0, posinf=0.0), _COLOURS[stage]
    ax.barh(y, shown, height * 0.9, color=colour, label=stage_title(stage))
    finite = np.isfinite(most)
    ax.hlines(y[finite], shown[finite], most[finite], color=colour, linewidth=1)
    ax.plot(most[finite], y[finite], "|", color=colour, label="largest")
    for one, at, size in zip(effects, y, np.where(finite, most, shown), strict=True) if with_tokens else ():
        endless = ", ratio inf" if math.isinf(one.mean_ratio) else ""
        text = f"{one.tokens:,} token{'' if one.tokens == 1 else 's'}{endless}"
        ax.annotate(text, (size, at), (5, 0), textcoords="offset points", va="center", fontsize="x-small")
    broken = np.array([one.broken > 0 for one in effects])
    if broken.any():  # else the legend would explain a mark that is nowhere
        ax.plot(shown[broken], y[broken], "x", color="black", label="made NaN or infinite")
