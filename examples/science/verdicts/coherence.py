"""Whether pairs whose differences agree give directions that steer."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval, spearman

AXES = 1  # of its figure


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return the rank correlations of coherence with effect, over all and over the sound alone, and the verdict."""
    rows = [row for part in parts for row in part["rows"]]
    by_concept: dict[tuple, list[dict]] = {}
    for row in rows:
        by_concept.setdefault((row["concept"], row["kind"]), []).append(row)
    means = [
        {"kind": kind, **{key: float(np.mean([row[key] for row in of])) for key in ("coherence", "effect")}}
        for (_, kind), of in by_concept.items()
    ]
    rank = lambda some: spearman([one["coherence"] for one in some], [one["effect"] for one in some])  # noqa: E731
    found = {f"Spearman, {len(means)} concepts with the broken ones": interval(rank, means)}
    sound = [one for one in means if one["kind"] == "sound"]
    found[f"Spearman, the {len(sound)} sound ones alone"] = interval(rank, sound)
    return {"met": rank(means) >= bounds["spearman"], "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for kind in ("sound", "labels by chance", "no difference"):
        rows = [row for part in parts for row in part["rows"] if row["kind"] == kind]
        axes[0].plot([row["coherence"] for row in rows], [row["effect"] for row in rows], "o", ms=4, label=kind)
    axes[0].set(xlabel="mean cosine of differences", ylabel="effect, in those of random vectors")
    axes[0].legend(fontsize="small", frameon=False)
