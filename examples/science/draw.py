"""The figure of an effect."""

from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

from examples.science.plan import results


def draw(name: str, folder: Path, quick: bool) -> Figure:
    """Return the figure of an effect; axes that it leaves empty are taken off."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = list(figure.subplots(1, 3))
    import_module(f"examples.science.verdicts.{name}").figure(axes, results(folder, name, quick))
    for ax in axes:
        if not ax.has_data():
            ax.remove()
        ax.spines[["top", "right"]].set_visible(False)
    return figure
