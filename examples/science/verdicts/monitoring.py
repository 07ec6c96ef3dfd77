"""Whether the projection of the last prompt token foretells the answer."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval, pearson
from examples.science.texts import TRAITS


def correlation(rows: Sequence[dict]) -> float:
    """Return the correlation over system prompts."""
    return pearson([row["projection"] for row in rows], [row["score"] for row in rows])


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return the correlations of projection and expression, and the verdict."""
    by_trait = {trait: [part["rows"] for part in parts if part["trait"] == trait] for trait in TRAITS}
    means = {  # over seeds, which change the pairs that the direction is from
        trait: [
            {k: float(np.mean([rows[i][k] for rows in of])) for k in ("projection", "score")} for i in range(len(of[0]))
        ]
        for trait, of in by_trait.items()
    }
    intervals = {trait: interval(correlation, rows) for trait, rows in means.items()}
    mean = float(np.mean([one[0] for one in intervals.values()]))
    found = {"mean r over traits": mean} | {f"{trait}: r": one for trait, one in intervals.items()}
    return {"met": mean >= bounds["r"], "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for ax, trait in zip(axes, TRAITS, strict=True):
        rows = [row for part in parts if part["trait"] == trait for row in part["rows"]]
        ax.plot([row["projection"] for row in rows], [row["score"] for row in rows], "o", ms=4)
        ax.set(title=trait, xlabel="projection at the end of the prompt")
    axes[0].set_ylabel("gap of the answer, nats")
