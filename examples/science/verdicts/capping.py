"""Whether a cap makes extreme answers rarer, and leaves the model whole."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval
from examples.science.texts import TRAITS


def rate(part: dict, name: str) -> float:
    """Return the share of gaps above the 95th percentile of those after plain contexts, prompt by prompt."""
    plain, given = (
        np.array(part["gaps"][one]).reshape(-1, part["prompts"]) for one in ("plain", name)
    )  # (contexts, P)
    return float((given > np.percentile(plain, 95, axis=0)).mean())


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return how the rate of extreme answers changes with the cap, and the verdict."""

    def change(some: Sequence[dict], name: str = "cap") -> float:
        return float(np.mean([rate(one, name) for one in some]) / np.mean([rate(one, "none") for one in some]) - 1)

    found: dict = {"change of the rate of extreme answers": interval(change, parts)}
    found["the same with a random direction"] = change(parts, "random cap")
    for trait in TRAITS:
        of = [part for part in parts if part["trait"] == trait]
        found[f"{trait}: rate without the cap, with it"] = [
            float(np.mean([rate(one, name) for one in of])) for name in ("none", "cap")
        ]
    losses = [float(np.exp(one["loss"]["cap"] - one["loss"]["none"])) for one in parts]
    found["neutral perplexity: times, mean"] = float(np.mean(losses))
    met = found["change of the rate of extreme answers"][0] <= bounds["rate"] and np.mean(losses) < bounds["perplexity"]
    return {"met": bool(met), "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for ax, trait in zip(axes, TRAITS, strict=True):
        names = ("plain", "none", "random cap", "cap")
        of = [part["gaps"] for part in parts if part["trait"] == trait]
        ax.boxplot([np.concatenate([one[name] for one in of]) for name in names], showfliers=False)
        ax.set_xticks(range(1, 5), ["plain text", "no cap", "random cap", "cap"], fontsize="x-small", rotation=20)
        ax.set(title=trait)
    axes[0].set_ylabel("gap, nats")
