"""The figure of an effect."""

from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

from examples.science.plan import results


def draw(name: str, folder: Path, quick: bool) -> Figure:
    """Return the figure of an effect: three axes, one for each trait, unless it has fewer."""
    verdict = import_module(f"examples.science.verdicts.{name}")
    count = getattr(verdict, "AXES", 3)
    figure = Figure(figsize=(1 + 3 * count + (count == 1), 3.4), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    verdict.figure(axes, results(folder, name, quick))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure
