"""Whether steering along a trait during the fit prevents it, and at which price."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval
from examples.science.texts import TRAITS


def cut(part: dict, name: str) -> float:
    """Return the share of the trait's rise that a protection took away."""
    rows = part["rows"]
    rise = rows["none"]["score"] - rows["base"]["score"]
    return (rows["none"]["score"] - rows[name]["score"]) / rise


def loss_in_use(part: dict) -> float:
    """Return the loss of steering in use at the score that the protected model has."""
    use, score = part["rows"]["in use"], part["rows"][part["chosen"]]["score"]
    order = np.argsort(use["score"])
    return float(np.interp(score, np.array(use["score"])[order], np.array(use["loss"])[order]))


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return how much of the rise was prevented, what it cost, and the verdict."""
    found, kept = {}, []
    for trait in TRAITS:
        of = [part for part in parts if part["trait"] == trait]
        cuts = interval(lambda some: float(np.mean([cut(one, one["chosen"]) for one in some])), of)
        loss = float(np.mean([one["rows"][one["chosen"]]["loss"] - one["rows"]["none"]["loss"] for one in of]))
        less = float(np.mean([one["rows"][one["chosen"]]["loss"] - loss_in_use(one) for one in of]))
        chance = float(np.mean([cut(one, f"random {one['chosen']}") for one in of]))
        name = f"{trait}, strength {bounds['strength'][trait]:g}"
        found[f"{name}: cut"], found[f"{name}: random vector's cut"] = cuts, chance
        found |= {f"{name}: loss less the unprotected": loss, f"{name}: loss less that of steering in use": less}
        kept.append(cuts[0] >= bounds["cut"] and loss <= bounds["loss"])
    return {"met": sum(kept) >= bounds["traits"], "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for ax, trait in zip(axes, TRAITS, strict=True):
        of = [part for part in parts if part["trait"] == trait]
        names = [name for name in of[0]["rows"] if name not in ("base", "none", "in use")]
        ax.bar(range(len(names)), [np.mean([cut(one, name) for one in of]) for name in names], color="0.7")
        for one in of:
            ax.plot(range(len(names)), [cut(one, name) for name in names], "k.")
        ax.axhline(0.8, color="C3", lw=0.8)
        ax.set_xticks(range(len(names)), names, rotation=30, fontsize="small")
        ax.set(title=trait, xlabel="strength")
    axes[0].set_ylabel("share of the rise that was prevented")
