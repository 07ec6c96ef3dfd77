"""Whether traits follow the strength of steering, further than with random vectors of equal norm."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from examples.science.arithmetic import interval
from examples.science.measures.dose import RANDOM, STRENGTHS
from examples.science.texts import TRAITS
from mi_crow_lightning.figures import plot_sweep

T_7 = 2.3646  # Student's t with 7 degrees of freedom, 97.5 %


def slopes(curve: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the slope over the strengths, of each prompt."""
    x, y = np.array(STRENGTHS), np.array(curve)  # (S,), (S, P)
    return (x @ (y - y.mean(0))) / (x @ x)


def judge(parts: Sequence[dict], bounds: dict) -> dict:
    """Return which traits follow the strength, and further than random vectors do, and the verdict."""
    found, met = {}, []
    for trait in TRAITS:
        of = [part["traits"][trait] for part in parts]
        means = np.array([np.mean(one["vector"], 1) for one in of])  # (seeds, S)
        monotone = bool((np.diff(means.mean(0)) > 0).all())
        by_prompt = np.mean([slopes(one["vector"]) for one in of], 0)
        beyond = []
        for one in of:
            random = np.array([slopes(curve).mean() for curve in one["random"]])
            half = T_7 * random.std(ddof=1) * np.sqrt(1 + 1 / len(random))  # of a prediction interval
            beyond.append(bool(slopes(one["vector"]).mean() > random.mean() + half))
        wrong = [float((slopes(one["vector"]) < 0).mean()) for one in of]
        chance = [float((slopes(curve) < 0).mean()) for one in of for curve in one["random"]]
        probability = torch.sigmoid(torch.tensor(means.mean(0)))
        found[f"{trait}: slope, nats per strength"] = interval(lambda some: float(np.mean(some)), list(by_prompt))
        found[f"{trait}: monotone in the mean over seeds"] = monotone
        found[f"{trait}: beyond the interval of {RANDOM} random vectors, seeds"] = f"{sum(beyond)} of {len(beyond)}"
        found[f"{trait}: span of the sigmoid of the gap"] = (probability.max() - probability.min()).item()
        found[f"{trait}: prompts that move the wrong way"] = float(np.mean(wrong))
        found[f"{trait}: the same with random vectors, least and most"] = [min(chance), max(chance)]
        met.append(monotone and all(beyond))
    return {"met": sum(met) >= bounds["traits"], "found": found}


def figure(axes: list[Axes], parts: list[dict]) -> None:
    """Draw what was found."""
    for ax, trait in zip(axes, TRAITS, strict=True):
        of = [part["traits"][trait] for part in parts]
        random = [np.mean(curve, 1) for one in of for curve in one["random"]]
        vector = np.mean([np.mean(one["vector"], 1) for one in of], 0)
        plot_sweep(parts[0]["strengths"], vector, random, measure="gap, nats", label=trait, ax=ax)
