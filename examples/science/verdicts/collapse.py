"""Whether the representation collapses without the stopped gradient."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval

AXES = 2  # of its figure


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return spreads and ranks, and the verdict."""
    found = {
        f"{what} {name} the stopped gradient": interval(
            lambda some, n=name, w=what: float(np.mean([o[n][w] for o in some])), parts
        )
        for what in ("spread", "rank")
        for name in ("with", "without")
    }
    found["ratio of ranks"] = interval(
        lambda some: float(np.mean([one["with"]["rank"] / one["without"]["rank"] for one in some])), parts
    )
    spread_without = found["spread without the stopped gradient"][0]
    return {"met": spread_without < bounds["spread"] and found["ratio of ranks"][0] >= bounds["ratio"], "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for ax, what in zip(axes, ("spread", "rank"), strict=False):
        for i, name in enumerate(("without", "with")):
            ax.plot([i] * len(parts), [part[name][what] for part in parts], "o")
        ax.set_xticks([0, 1], ["no stopped gradient", "stopped gradient"], fontsize="small")
        ax.set(ylabel=what, ylim=(0, None), xlim=(-0.5, 1.5))
