"""A measure over strengths, drawn beside random vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from mi_crow_lightning.figures import plot_sweep

STRENGTHS, VALUES = [4.0, -2.0, 0.0], [3.0, -1.0, 1.0]
RANDOM = np.array([[1.5, 0.5, 1.0], [0.5, 1.0, 1.0], [1.0, 0.0, 1.0]])


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda numbers: [torch.tensor(one) for one in numbers]])
def test_lines_and_band(form: Any) -> None:
    given = form(STRENGTHS), form(VALUES), form(RANDOM.tolist())
    fig, ax = plot_sweep(*given, measure="gladness", band="deviation")
    order = np.argsort(STRENGTHS)
    vector, *controls, mean = ax.lines[:5]
    np.testing.assert_array_equal(vector.get_xdata(), [-2, 0, 4])
    np.testing.assert_array_equal(vector.get_ydata(), [-1, 1, 3])
    np.testing.assert_array_equal([line.get_ydata() for line in controls], RANDOM[:, order])
    np.testing.assert_allclose(mean.get_ydata(), RANDOM.mean(0)[order])
    (band,) = ax.collections
    corners = {(x, round(y, 9)) for x, y in band.get_paths()[0].vertices.tolist()}
    deviation = torch.tensor(RANDOM).std(0).numpy()  # torch divides by R - 1
    for place in range(3):
        for sign in (-1, 1):
            edge = RANDOM.mean(0)[place] + sign * deviation[place]
            assert (STRENGTHS[place], round(edge, 9)) in corners
    assert ax.get_ylabel() == "gladness" and ax.get_xlabel() == "strength" and pyplot.get_fignums() == [fig.number]
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == ["vector", "each random vector", "mean of 3 random vectors", "one standard deviation"]


def test_the_band_reaches_from_the_smallest_to_the_largest() -> None:
    _, ax = plot_sweep(STRENGTHS, VALUES, RANDOM)
    (band,) = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    edges = (RANDOM.min(0), RANDOM.max(0))
    assert {(STRENGTHS[i], edge[i]) for i in range(3) for edge in edges} <= corners
    assert ax.get_legend().get_texts()[-1].get_text() == "from the smallest to the largest"
    with pytest.raises(ValueError, match="band='std' is not known"):
        plot_sweep(STRENGTHS, VALUES, RANDOM, band="std")  # type: ignore[arg-type]


def test_without_random_vectors_and_with_one() -> None:
    figure, ax = pyplot.subplots()
    assert plot_sweep(STRENGTHS, VALUES, ax=ax, label="joy") == (figure, ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["joy"]
    _, ax = plot_sweep(STRENGTHS, VALUES, RANDOM[:1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["vector", "one random vector"]
    assert not ax.collections  # one vector has no spread


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((STRENGTHS, VALUES[:2]), ValueError, "values has 2 numbers a vector, and there are 3 strengths"),
        ((STRENGTHS, VALUES, RANDOM[:, :2]), ValueError, "random has 2 numbers a vector"),
        ((STRENGTHS, VALUES, VALUES), ValueError, r"random has the shape \(3,\), but must be \(R, S\)"),
        ((STRENGTHS, RANDOM), ValueError, r"values has the shape \(3, 3\), but must be \(S,\)"),
        ((STRENGTHS, "high"), TypeError, r"values='high' must be numbers \(S,\)"),
        (([0, 1, None], VALUES), ValueError, "strengths=.* must be finite numbers"),
        (([], []), ValueError, "strengths=.* must be finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        plot_sweep(*arguments)
    assert not pyplot.get_fignums()
