"""A figure of each effect, from its results."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.science.plan import results
from examples.science.prevention import cut
from examples.science.shift import changes
from examples.science.texts import TRAITS
from mi_crow_lightning.figures import plot_sweep

matplotlib.use("Agg")
MARKS = dict(zip(TRAITS, "os^", strict=True))


def scatter(of: str, label: str) -> Callable:
    """Return a drawing of the fine-tunes: a score over what was seen along its trait, by the trait of the set."""

    def figure(axes: list[Axes], parts: list[dict]) -> None:
        rows = changes(parts)
        for ax, trait in zip(axes, TRAITS, strict=True):
            for name, mark in MARKS.items():
                xy = [
                    (r[of][trait], r["score"][trait], r["level"]) for r in rows if r["trait"] == name and r["level"] > 0
                ]
                xy += [(r[of][trait], r["score"][trait], 0) for r in rows if r["trait"] == name and r["level"] == 0]
                x, y, level = zip(*xy, strict=True)
                ax.scatter(x, y, c=level, cmap="viridis", marker=mark, s=18, label=f"set of {name}", vmin=0, vmax=1)
            ax.set(title=trait, xlabel=label)
        axes[0].set_ylabel("change of the trait's score, nats")
        axes[0].legend(fontsize="x-small", frameon=False)

    return figure


def prevention(axes: list[Axes], parts: list[dict]) -> None:
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


def dose(axes: list[Axes], parts: list[dict]) -> None:
    for ax, trait in zip(axes, TRAITS, strict=True):
        of = [part["traits"][trait] for part in parts]
        random = [np.mean(curve, 1) for one in of for curve in one["random"]]
        vector = np.mean([np.mean(one["vector"], 1) for one in of], 0)
        plot_sweep(parts[0]["strengths"], vector, random, measure="gap, nats", label=trait, ax=ax)


def coherence(axes: list[Axes], parts: list[dict]) -> None:
    for kind in ("sound", "labels by chance", "no difference"):
        rows = [row for part in parts for row in part["rows"] if row["kind"] == kind]
        axes[1].plot([row["coherence"] for row in rows], [row["effect"] for row in rows], "o", ms=4, label=kind)
    axes[1].set(xlabel="mean cosine of differences", ylabel="effect, in those of random vectors")
    axes[1].legend(fontsize="small", frameon=False)


def massive(axes: list[Axes], parts: list[dict]) -> None:
    names = ("none", "their mean", "others zeroed", "zeroed")
    losses = [[np.mean(part["losses"][name]) for name in names] for part in parts]
    axes[1].bar(names, np.mean(losses, 0), color="0.7")
    axes[1].set(ylabel="loss, nats a token")
    axes[1].tick_params(axis="x", labelrotation=20)


def capping(axes: list[Axes], parts: list[dict]) -> None:
    for ax, trait in zip(axes, TRAITS, strict=True):
        names = ("plain", "none", "random cap", "cap")
        of = [part["gaps"] for part in parts if part["trait"] == trait]
        ax.boxplot([np.concatenate([one[name] for one in of]) for name in names], showfliers=False)
        ax.set_xticks(range(1, 5), ["plain text", "no cap", "random cap", "cap"], fontsize="x-small", rotation=20)
        ax.set(title=trait)
    axes[0].set_ylabel("gap, nats")


def coordinates(axes: list[Axes], parts: list[dict]) -> None:
    for ax, name in zip(axes, ("SP", "muP"), strict=False):
        for layer in parts[0]["rms"][name]:
            ax.loglog(parts[0]["widths"], np.mean([part["rms"][name][layer] for part in parts], 0), "o-", label=layer)
        ax.set(title=name, xlabel="width", ylabel="root mean square")
        ax.legend(fontsize="small", frameon=False)


def collapse(axes: list[Axes], parts: list[dict]) -> None:
    for ax, what in zip(axes, ("spread", "rank"), strict=False):
        for i, name in enumerate(("without", "with")):
            ax.plot([i] * len(parts), [part[name][what] for part in parts], "o")
        ax.set_xticks([0, 1], ["no stopped gradient", "stopped gradient"], fontsize="small")
        ax.set(ylabel=what, ylim=(0, None), xlim=(-0.5, 1.5))


def monitoring(axes: list[Axes], parts: list[dict]) -> None:
    for ax, trait in zip(axes, TRAITS, strict=True):
        rows = [row for part in parts if part["trait"] == trait for row in part["rows"]]
        ax.plot([row["projection"] for row in rows], [row["score"] for row in rows], "o", ms=4)
        ax.set(title=trait, xlabel="projection at the end of the prompt")
    axes[0].set_ylabel("gap of the answer, nats")


DRAWN = dict(
    shift=scatter("shift", "shift on neutral texts, in spreads"), data=scatter("data", "training texts less plain ones"),
    prevention=prevention, dose=dose, coherence=coherence, massive=massive, capping=capping,
    coordinates=coordinates, collapse=collapse, monitoring=monitoring,
)  # fmt: skip


def draw(name: str, folder: Path, quick: bool) -> Figure:
    """Return the figure of an effect; axes that it leaves empty are taken off."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = list(figure.subplots(1, 3))
    DRAWN[name](axes, results(folder, name, quick))
    for ax in axes:
        if not ax.has_data():
            ax.remove()
        ax.spines[["top", "right"]].set_visible(False)
    return figure
