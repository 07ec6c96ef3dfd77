"""Figures need matplotlib, and no window; whatever a test left open is closed."""

import pytest


@pytest.fixture(autouse=True)
def closed_figures():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
