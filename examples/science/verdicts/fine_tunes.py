"""Fine-tunes as rows: what was seen along each trait, and how far the scores of the traits moved."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import pearson
from examples.science.texts import TRAITS

MARKS = dict(zip(TRAITS, "os^", strict=True))
Rows = Sequence[dict]
PAIRS = list(product(TRAITS, TRAITS))


def correlation(rows: Rows, of: str, along: str, scored: str) -> float:
    """Return the correlation over fine-tunes of what is seen along one trait with the change of a trait's score."""
    return pearson([row[of][along] for row in rows], [row["score"][scored] for row in rows])


def mean_r(of: str, pairs: Sequence[tuple[str, str]]) -> Callable[[Rows], float]:
    """Return a function of rows: the mean correlation over pairs of traits."""
    return lambda rows: float(np.mean([correlation(rows, of, along, scored) for along, scored in pairs]))


def same_set(row: dict) -> tuple:
    """Return which of the 24 sets a fine-tune belongs to; its seeds are drawn together."""
    return row["trait"], row["level"], row["domain"]


def changes(parts: Sequence[dict]) -> list[dict]:
    """Return the fine-tunes of all parts, with scores less those of the base model."""
    return [
        {**row, "score": {t: row["score"][t] - part["base"]["score"][t] for t in TRAITS}}
        for part in parts
        for row in part["rows"]
    ]


def scatter(of: str, label: str) -> Callable[[list[Axes], list[dict]], None]:
    """Return a drawing of the fine-tunes: a score over what was seen along its trait, by the trait of the set."""

    def figure(axes: list[Axes], parts: list[dict]) -> None:
        rows = changes(parts)
        for ax, trait in zip(axes, TRAITS, strict=True):
            for name, mark in MARKS.items():
                points = [(row[of][trait], row["score"][trait], row["level"]) for row in rows if row["trait"] == name]
                x, y, level = zip(*points, strict=True)
                ax.scatter(x, y, c=level, cmap="viridis", marker=mark, s=18, label=f"sets of {name}", vmin=0, vmax=1)
            ax.set(title=trait, xlabel=label)
        axes[0].set_ylabel("change of the trait's score, nats")
        axes[0].text(
            0.98, 0.02, "yellow: all texts have the trait", transform=axes[0].transAxes, ha="right", fontsize=7
        )
        axes[0].legend(fontsize="x-small", frameon=False)

    return figure
