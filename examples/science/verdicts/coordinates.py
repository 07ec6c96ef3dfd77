"""Whether activations keep their size as a network gets wider."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from examples.science.arithmetic import interval

AXES = 2  # of its figure


def slope(parts: Sequence[dict], name: str, layer: str) -> float:
    """Return the slope of the logarithm of a layer's size over that of the width, of the mean over seeds."""
    widths = np.log(parts[0]["widths"])
    size = np.mean([np.log(part["rms"][name][layer]) for part in parts], 0)
    return float(np.polyfit(widths, size, 1)[0])


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return the slopes of all layers in both parametrisations, and the verdict."""
    found = {
        f"{name}, {layer}: slope": interval(lambda some, n=name, at=layer: slope(some, n, at), parts)
        for name in ("SP", "muP")
        for layer in ("input", "hidden", "readout")
    }
    flat = all(abs(slope(parts, "muP", layer)) <= bounds["mup"] for layer in ("input", "hidden", "readout"))
    return {"met": flat and slope(parts, "SP", "readout") >= bounds["sp"], "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for ax, name in zip(axes, ("SP", "muP"), strict=False):
        for layer in parts[0]["rms"][name]:
            ax.loglog(parts[0]["widths"], np.mean([part["rms"][name][layer] for part in parts], 0), "o-", label=layer)
        ax.set_xticks(parts[0]["widths"], parts[0]["widths"])
        ax.xaxis.minorticks_off()
        ax.set(title=name, xlabel="width", ylabel="root mean square")
        ax.legend(fontsize="small", frameon=False)
