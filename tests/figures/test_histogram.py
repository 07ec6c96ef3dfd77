"""Histograms of one layer over the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures import plot_histogram
from mi_crow_lightning.metrics.log2_bins import EDGES
from tests.figures.rows import counted

BINS = 4


def shares(steps: range | list[int]) -> np.ndarray:
    counts = np.array([[step + bin for step in steps] for bin in range(BINS)], dtype=float)
    return counts / counts.sum(0)


def image(ax: Any) -> np.ndarray:
    return np.ma.filled(ax.images[0].get_array(), 0.0)


def test_every_share_is_in_its_cell() -> None:
    fig, ax = plot_histogram(counted(range(1, 50, 7)), "model.layers.3")
    np.testing.assert_allclose(image(ax), shares(range(1, 50, 7)), rtol=1e-12)
    assert ax.images[0].origin == "lower" and pyplot.get_fignums() == [fig.number]
    assert ax.get_title(loc="left") == "histogram of model.layers.3 in training"
    assert [label.get_text() for label in ax.get_xticklabels()][-1] == "43"
    edges = dict(zip(ax.get_yticks(), [label.get_text() for label in ax.get_yticklabels()], strict=True))
    assert edges == {-0.5: "-4", 0.5: "-1", 1.5: "0", 2.5: "1", 3.5: "4"}


def test_counts_of_steps_that_share_a_column_are_added() -> None:
    steps = range(1, 3001)
    _, ax = plot_histogram(counted(steps), 3)
    found = image(ax)
    columns = found.shape[1]
    bounds = [column * 3000 // columns for column in range(columns + 1)]
    there = np.array([[step + bin for step in steps[bounds[7] : bounds[8]]] for bin in range(BINS)]).sum(1)
    assert columns <= 400
    np.testing.assert_allclose(found[:, 7], there / there.sum(), rtol=1e-12)


def test_one_curve_a_step() -> None:
    _, ax = plot_histogram(counted(range(1, 101)), "layers.3", kind="ridge")
    assert len(ax.lines) == 12
    chosen = [int(label.get_text()) for label in ax.get_yticklabels()]
    assert chosen[0] == 1 and chosen[-1] == 100
    heights = {round(line.get_ydata()[0]): line.get_ydata() for line in ax.lines}
    rows = np.array([line.get_ydata() for line in reversed(ax.lines)]) - np.arange(12)[:, None]
    np.testing.assert_allclose(rows, 1.8 * shares(chosen).T / shares(chosen).max())
    assert len(heights) == 12


def test_empty_bins_outside_are_left_out() -> None:
    (one,) = counted([1], edges=EDGES)
    row = one._replace(counts=tuple(5.0 if 30 <= i <= 36 else 0.0 for i in range(len(EDGES) - 1)))
    _, ax = plot_histogram([row], 3)
    np.testing.assert_allclose(image(ax), np.full((7, 1), 1 / 7))
    assert dict(zip(ax.get_yticks(), [label.get_text() for label in ax.get_yticklabels()], strict=True))[2.0] == "0"


def test_bins_that_changed_are_left_out_and_said() -> None:
    _, ax = plot_histogram([*counted([1, 2], edges=(0.0, 1.0, 2.0)), *counted([3, 4])], 3)
    np.testing.assert_allclose(image(ax), shares([3, 4]))
    assert "without 2 steps that have other bins" in ax.get_title(loc="left")


def test_given_axes_are_drawn_on() -> None:
    figure, ax = pyplot.subplots()
    for kind in ("heat", "ridge"):
        assert plot_histogram(counted([1, 2]), 3, kind=kind, ax=ax) == (figure, ax)
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            dict(layer="model.layers.4"),
            ValueError,
            r"layer='model\.layers\.4' is not among the layers: 'model\.layers\.3'",
        ),
        (dict(layer=True), TypeError, "layer=True must be the name of a layer"),
        (dict(layer=3, kind="line"), ValueError, "kind='line' is not known: choose one of 'heat', 'ridge'"),
        (
            dict(layer=3, stage="test"),
            ValueError,
            "stage='test' has no 'histogram': it was read in 'train', 'validate'",
        ),
        (dict(layer=3, name="channel_rms"), ValueError, "name='channel_rms' is not known: choose one of 'histogram'"),
    ],
)
def test_wrong_names(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        plot_histogram([*counted([1]), *counted([2], stage="validate")], **arguments)
    assert not pyplot.get_fignums()


def test_a_number_that_several_layers_have() -> None:
    both = [*counted([1], layer="encoder.3"), *counted([1], layer="decoder.3")]
    with pytest.raises(ValueError, match=r"layer=3 means several layers: 'encoder\.3', 'decoder\.3'"):
        plot_histogram(both, 3)
    assert plot_histogram(both, "decoder.3")[1].get_title(loc="left") == "histogram of decoder.3 in training"


def test_no_histograms() -> None:
    with pytest.raises(NothingToDraw, match=r"ActivationStatistics\(histogram=True\)"):
        plot_histogram([], 0)
