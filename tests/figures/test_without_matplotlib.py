"""Without matplotlib everything but figures works, and figures name the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from mi_crow_lightning import ActivationStatistics, HookCallback  # torchmetrics imports what is installed
for name in [*sys.modules]:
    if name.partition(".")[0] == "matplotlib":
        del sys.modules[name]
sys.modules["matplotlib"] = None

from mi_crow_lightning.figures import plot_effects, plot_heatmap, plot_separability, plot_sweep, plot_histogram
from mi_crow_lightning.hooks.effects import Effect
from mi_crow_lightning.loggers import HistogramRow, HistoryRow
from mi_crow_lightning.metrics.separability import Separability

HookCallback(ActivationStatistics("block:*"))
calls = [
    lambda: plot_heatmap([HistoryRow("train", 1, "a_rms/h", "h", "rms", 1.0)], "rms"),
    lambda: plot_histogram([HistogramRow("train", 1, "a/h", "h", "histogram", (0.0, 1.0), (1.0,))], "h"),
    lambda: plot_effects([Effect("s", "h", "predict", 1, 1, 0.5, 0.5)]),
    lambda: plot_separability([Separability("h", 1.0, 4, 2.0)]),
    lambda: plot_sweep([0, 1], [0, 1]),
    lambda: HookCallback(figures=True),
    lambda: HookCallback(ActivationStatistics("block:*"), figures=["rms"]),
]
for call in calls:
    try:
        call()
    except ImportError as error:
        print(error)
"""


@pytest.mark.documents("reliability/figures-true-without-matplotlib")
def test_every_figure_names_the_extra() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    needs = "needs matplotlib, which is not installed: pip install 'mi-crow-lightning[plot]'"
    whose = ["a figure"] * 5 + ["figures=True", "figures=['rms']"]
    assert ran.stdout.splitlines() == [f"{one} {needs}" for one in whose]


def test_importing_figures_loads_neither_matplotlib_nor_torch() -> None:
    script = (
        "import sys; from mi_crow_lightning.figures import plot_heatmap; "
        "print([name for name in ('matplotlib', 'torch', 'lightning') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
