"""AUROC and d' over the layers, drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib import pyplot

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures import plot_separability
from mi_crow_lightning.metrics.separability import Separability


def scores(count: int, stack: str = "model.layers") -> list[Separability]:
    return [Separability(f"{stack}.{i}", min(1.0, 0.5 + i / 10), 12, 0.4 * i - 1) for i in range(count)]


def test_both_scores_of_every_layer() -> None:
    fig, ax = plot_separability(scores(8))
    _, other = fig.axes
    assert ax.lines[0].get_ydata().tolist() == [row.auroc for row in scores(8)]
    assert other.lines[0].get_ydata().tolist() == [row.d_prime for row in scores(8)]
    assert ax.lines[0].get_xdata().tolist() == other.lines[0].get_xdata().tolist() == list(range(8))
    assert (ax.get_ylabel(), other.get_ylabel(), ax.get_xlabel()) == ("AUROC", "d'", "model.layers")
    assert ax.get_title(loc="left") == "best: model.layers.7, 12 held-out samples"
    chance, best = ax.lines[-2:]
    assert list(chance.get_ydata()) == [0.5, 0.5]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([7], [1.0])  # among equals the one with the largest d'


def test_two_stacks_are_two_lines() -> None:
    both = [*scores(3, "encoder.block"), *scores(4, "decoder.block")]
    fig, ax = plot_separability(both)
    first, second = ax.lines[0], next(line for line in ax.lines[1:] if len(line.get_ydata()) == 4)
    assert len(first.get_ydata()) == 3 and second.get_xdata()[0] - first.get_xdata()[-1] > 1
    assert [text.get_text() for text in ax.texts] == ["encoder.block", "decoder.block"]
    assert fig.axes[0] is ax


def test_a_spread_of_nothing_is_a_triangle_at_the_edge() -> None:
    one, two = scores(2)
    fig, ax = plot_separability([one, two._replace(d_prime=math.inf)])
    fig.canvas.draw()
    other = fig.axes[1]
    np.testing.assert_array_equal(other.lines[0].get_ydata(), [-1.0, math.nan])
    above = next(line for line in other.lines if line.get_marker() == "^")
    assert (list(above.get_xdata()), list(above.get_ydata())) == ([1], [1.0])
    assert "model.layers.1" in ax.get_title(loc="left")


@pytest.mark.parametrize("count", [1, 200])
def test_any_number_of_layers_on_given_axes(count: int) -> None:
    figure, ax = pyplot.subplots()
    assert plot_separability(scores(count), ax=ax) == (figure, ax)
    figure.canvas.draw()
    assert len(ax.get_xticks()) == min(count, len(ax.get_xticks())) <= 40 and len(pyplot.get_fignums()) == 1


def test_no_scores() -> None:
    with pytest.raises(NothingToDraw, match="there are no scores"):
        plot_separability([])
