"""What massive activations are, and what the model loses without them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval

AXES = 1  # of its figure


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return by what the perplexity is multiplied without them, and the verdict."""
    rows = [
        {name: part["losses"][name][i] for name in part["losses"]}
        for part in parts
        for i in range(len(part["losses"]["none"]))
    ]
    times = {
        name: interval(lambda some, name=name: float(np.exp(np.mean([one[name] - one["none"] for one in some]))), rows)
        for name in ("zeroed", "their mean", "others zeroed")
    }
    found = {f"perplexity, {name}: times": value for name, value in times.items()}
    massive = [one for part in parts for one in part["massive"]]
    middle = [abs(one["value"]) for one in massive if one["block"] == parts[0]["first"] + 5 and one["token"] == 0]
    channels = {one["channel"] for one in massive}
    blocks = sorted({one["block"] for one in massive})
    found |= {"channels": str(sorted(channels)), "blocks": f"{blocks[0]} to {blocks[-1]}"}
    found |= {"size of that of token 0, five blocks after the first, mean": float(np.mean(middle))}
    found["its coefficient of variation"] = float(np.std(middle) / np.mean(middle))
    found["share that is not at token 0"] = float(np.mean([one["token"] > 0 for one in massive]))
    met = times["zeroed"][0] > bounds["zeroed"] and times["their mean"][0] < bounds["mean"]
    return {"met": met, "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    names = ("none", "their mean", "others zeroed", "zeroed")
    losses = [[np.mean(part["losses"][name]) for name in names] for part in parts]
    axes[0].bar(names, np.mean(losses, 0), color="0.7")
    axes[0].set(ylabel="loss, nats a token")
    axes[0].tick_params(axis="x", labelrotation=20)
