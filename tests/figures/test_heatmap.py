"""The heatmap: its numbers, and what it does with those that are missing, infinite, repeated or too many."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures import plot_heatmap
from mi_crow_lightning.loggers import HistoryRow
from tests.figures.rows import always, blocks, matrix, rows, wave


def image(ax: Any, place: int = 0) -> np.ndarray:
    """The numbers of an image, nan where there is none."""
    return np.ma.filled(ax.images[place].get_array().astype(float), np.nan)


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def legend_of(ax: Any) -> tuple[list[Any], list[Any]]:
    return ax.get_legend().get_texts(), ax.get_legend().get_patches()


def texts(figure: Any) -> str:
    figure.canvas.draw()
    found = [text.get_text() for ax in figure.axes for text in [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]]
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    legends = [text.get_text() for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    return "\n".join([*found, *titles, *legends])


def test_every_number_is_in_its_cell() -> None:
    steps = range(9, 300, 10)
    fig, ax = plot_heatmap(rows(blocks(5), steps), "rms")
    np.testing.assert_array_equal(image(ax), matrix(5, steps))
    assert ax.figure is fig and pyplot.get_fignums() == [fig.number]
    assert labels(ax.yaxis) == list("01234") and ax.get_ylabel() == "model.layers"
    assert labels(ax.xaxis) == ["9", "59", "109", "159", "209", "259"]
    assert "rms of activations in training" in texts(fig) and "rms (activations)" in texts(fig)


def test_the_first_row_is_on_top_and_the_first_step_on_the_left() -> None:
    _, ax = plot_heatmap(rows(blocks(4), range(3)), "rms")
    left, right, bottom, top = ax.images[0].get_extent()
    assert (left, right, bottom, top) == (-0.5, 2.5, 3.5, -0.5) and ax.images[0].origin == "upper"
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_xlim() == (-0.5, 2.5)


def test_given_axes_are_drawn_on_and_returned() -> None:
    figure, (one, other) = pyplot.subplots(2)
    assert plot_heatmap(rows(blocks(2), range(3)), "rms", ax=other) == (figure, other)
    assert not one.images and len(other.images) == 1 and len(pyplot.get_fignums()) == 1


def test_what_is_no_axes_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ax='here' must be axes of matplotlib"):
        plot_heatmap(rows(blocks(2), range(3)), "rms", ax="here")


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (1, 10), (3, 1), (200, 10), (2, 10_000)])
def test_any_size_can_be_read(layers: int, steps: int) -> None:
    fig, ax = plot_heatmap(rows(blocks(layers), range(steps)), "rms")
    fig.canvas.draw()
    assert fig.get_size_inches().max() < 10
    for axis in (ax.xaxis, ax.yaxis):
        shown = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert shown and not any(one.overlaps(next_) for one, next_ in pairwise(shown))
    assert image(ax).shape[0] == layers and image(ax).shape[1] <= min(steps, 500)


def test_a_column_of_many_steps_shows_the_largest_and_what_is_not_finite() -> None:
    def value(layer: int, step: int) -> float:
        peaks = {(0, 5003): -1e3, (1, 17): math.nan, (2, 9999): math.inf}
        return peaks.get((layer, step), wave(layer, step))

    fig, ax = plot_heatmap(rows(blocks(3), range(10_000), value), "rms")
    found, columns = image(ax), image(ax).shape[1]
    bounds = [column * 10_000 // columns for column in range(columns + 1)]
    for column in (0, 100, columns - 1):
        there = [value(0, step) for step in range(bounds[column], bounds[column + 1])]
        assert found[0, column] == max(there, key=abs)
    assert found.min(where=np.isfinite(found), initial=0) == -1e3
    assert np.isnan(found[1]).sum() == 1 and np.isnan(found[1, 17 * columns // 10_000])
    assert ax.images[1].get_array()[2, -1] == 1 and "inf" in texts(fig).split("\n")
    assert re.search(rf"up to {-(-10_000 // columns)} in a column", texts(fig))


def test_steps_that_a_layer_left_out_do_not_hide_those_that_it_has() -> None:
    """Two detectors, one on half of the steps: no layer disappears where columns hold several steps."""
    every, half = rows(["h.0"], range(5000)), rows(["h.1"], range(0, 5000, 2))
    _, ax = plot_heatmap(sorted([*every, *half], key=lambda row: row.step), "rms")
    assert np.isfinite(image(ax)).all()


def test_nan_and_infinity_are_explained() -> None:
    cells = {(0, 0): math.nan, (1, 1): math.inf, (2, 2): -math.inf}
    fig, ax = plot_heatmap(rows(blocks(3), range(3), lambda layer, step: cells.get((layer, step), 1.0)), "rms")
    said = texts(fig).split("\n")
    assert {"no number (nan)", "inf", "-inf"} <= {*said}
    signs = ax.images[1].get_array()
    assert signs[1, 1] == 1 and signs[2, 2] == -1 and signs.count() == 2
    legend = {text.get_text(): patch for text, patch in zip(*legend_of(ax), strict=True)}
    for sign, name in ((1, "inf"), (-1, "-inf")):
        assert ax.images[1].to_rgba(np.array([[sign]]))[0, 0].tolist() == list(legend[name].get_facecolor())
    assert [patch.get_hatch() for patch in ax.patches] == ["////"]
    plain, _ = plot_heatmap(rows(blocks(3), range(3)), "rms")
    assert "nan" not in texts(plain)


def test_nothing_but_nan() -> None:
    fig, ax = plot_heatmap(rows(blocks(2), range(3), always(math.nan)), "rms")
    assert np.isnan(image(ax)).all() and "no number (nan)" in texts(fig)


def test_two_stacks_stand_apart() -> None:
    layers = [*blocks(3, "model.encoder.layers"), *blocks(2, "model.decoder.layers")]
    _, ax = plot_heatmap(rows(layers, range(4)), "rms")
    whole = matrix(5, range(4))
    np.testing.assert_array_equal(image(ax, 0), whole[:3])
    np.testing.assert_array_equal(image(ax, 1), whole[3:])
    assert [text.get_text() for text in ax.texts] == ["model.encoder.layers", "model.decoder.layers"]
    assert ax.images[0].get_extent()[2] < ax.images[1].get_extent()[3]  # between them is a gap
    assert labels(ax.yaxis) == ["0", "1", "2", "0", "1"]
    assert ax.images[0].norm is ax.images[1].norm


def test_both_signs_make_white_zero() -> None:
    _, ax = plot_heatmap(rows(blocks(2), range(4), lambda layer, step: step - 1.0), "rms")
    norm = ax.images[0].norm
    assert (norm.vmin, norm.vmax) == (-2.0, 2.0) and norm(0.0) == 0.5
    _, ax = plot_heatmap(rows(blocks(2), range(4), lambda layer, step: -1.0 - step), "rms")
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-4.0, -1.0)


def test_symmetric_log() -> None:
    values = [-1000.0, -1.0, 0.0, 0.5, 10.0]
    _, ax = plot_heatmap(rows(blocks(1), range(5), lambda layer, step: values[step]), "rms", scale="symlog")
    norm, expected = ax.images[0].norm, [math.copysign(math.log1p(abs(value) / 0.5), value) for value in values]
    end = math.log1p(1000 / 0.5)
    assert [float(norm(value)) for value in values] == pytest.approx([(one + end) / (2 * end) for one in expected])
    np.testing.assert_array_equal(image(ax)[0], values)


def test_each_layer_by_itself() -> None:
    def value(layer: int, step: int) -> float:
        return 3.0 if layer == 2 else 100.0**layer + step

    _, ax = plot_heatmap(rows(blocks(3), range(5), value), "rms", scale="per_layer")
    np.testing.assert_allclose(image(ax), [[0, 0.25, 0.5, 0.75, 1]] * 2 + [[0.5] * 5])
    _, ax = plot_heatmap(
        rows(blocks(2), range(3), lambda layer, step: (step - 1) * 10.0**layer), "rms", scale="per_layer"
    )
    np.testing.assert_allclose(image(ax), [[0, 0.5, 1]] * 2)


def test_epochs_are_marked_before_their_first_column() -> None:
    fig, ax = plot_heatmap(rows(blocks(2), range(4, 100, 5)), "rms", epochs={25: 1, 50: 2, 75: 3, 100: 4})
    assert [line.get_xdata()[0] for line in ax.lines] == [4.5, 9.5, 14.5]
    fig.canvas.draw()
    (top,) = ax.child_axes
    assert labels(top.xaxis) == ["epoch 1", "epoch 2", "epoch 3"]
    _, ax = plot_heatmap(rows(blocks(2), range(4, 100, 5), stage="validate"), "rms", epochs={25: 1, 50: 2})
    assert not ax.lines and not ax.child_axes  # a validation is one column an epoch


def test_a_run_that_was_resumed_replaces_what_it_repeats() -> None:
    crashed = rows(blocks(2), range(0, 80, 10))
    resumed = rows(blocks(2), range(50, 70, 10), always(99.0))
    _, ax = plot_heatmap([*crashed, *resumed], "rms")
    expected = matrix(2, range(0, 70, 10))
    expected[:, 5:] = 99.0
    np.testing.assert_array_equal(image(ax), expected)


def test_a_second_test_replaces_the_first() -> None:
    first, second = (rows(blocks(2), [5], always(value), stage="test") for value in (1.0, 2.0))
    _, ax = plot_heatmap([*first, *second], "rms")
    np.testing.assert_array_equal(image(ax), [[2.0], [2.0]])


def test_layers_are_chosen_by_globs() -> None:
    layers = [f"model.layers.{i}.{part}" for i in range(3) for part in ("attn", "mlp")]
    _, ax = plot_heatmap(rows(layers, range(2)), "rms", layers="*.mlp")
    np.testing.assert_array_equal(image(ax), matrix(6, range(2))[1::2])
    with pytest.raises(ValueError, match=r"layers='\*\.norm' fits no layer: 'model.layers.0.attn', .*"):
        plot_heatmap(rows(layers, range(2)), "rms", layers="*.norm")
    with pytest.raises(TypeError, match="layers=3 must be"):
        plot_heatmap(rows(layers, range(2)), "rms", layers=3)  # type: ignore[arg-type]


def test_a_layer_that_comes_late_stands_where_the_model_has_it() -> None:
    some = [
        row
        for row in rows(blocks(5), range(4))
        if row.step > 1 or row.layer not in ("model.layers.0", "model.layers.3")
    ]
    _, ax = plot_heatmap(some, "rms")
    assert labels(ax.yaxis) == list("01234")
    expected = matrix(5, range(4))
    expected[np.ix_([0, 3], [0, 1])] = math.nan
    np.testing.assert_array_equal(image(ax), expected)


def test_two_detectors_are_told_apart_by_their_names() -> None:
    both = [*rows(["h.0"], range(2)), *rows(["h.0.attn"], range(2), prefix="attention")]
    with pytest.raises(ValueError, match="'activations_rms' or 'attention_rms'"):
        plot_heatmap(both, "rms")
    fig, ax = plot_heatmap(both, "attention_rms")
    np.testing.assert_array_equal(image(ax), matrix(1, range(2)))
    assert "rms of attention in training" in texts(fig)


def test_dataloaders_are_told_apart_by_their_numbers() -> None:
    ends = {f"/dataloader_idx_{i}": always(1.0 + i) for i in range(2)}
    both = [row for end, value in ends.items() for row in rows(["h.0"], [4], value, stage="validate", suffix=end)]
    with pytest.raises(ValueError, match="give one of 0, 1"):
        plot_heatmap(both, "rms")
    fig, ax = plot_heatmap(both, "rms", dataloader_idx=1)
    assert image(ax).tolist() == [[2.0]] and "in validation, dataloader 1" in texts(fig)
    with pytest.raises(ValueError, match="of all dataloaders together"):
        plot_heatmap(rows(["h.0"], [4]), "rms", dataloader_idx=1)


def test_a_stage_that_is_not_named_is_the_first_that_there_is() -> None:
    late = [*rows(["h.0"], [1], stage="predict"), *rows(["h.0"], [2], stage="validate")]
    fig, _ = plot_heatmap(late, "rms")
    assert "in validation" in texts(fig)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(name="rmss"), "name='rmss' is not known: choose one of 'rms', 'mean'. Did you mean 'rms'?"),
        (
            dict(name="rms", stage="val"),
            "stage='val' is not known: choose one of 'train', 'validate', 'test', 'predict'",
        ),
        (dict(name="rms", stage="test"), "stage='test' has no 'rms': it was read in 'train'"),
        (dict(name="rms", scale="log"), "scale='log' is not known: choose one of 'linear', 'symlog', 'per_layer'"),
    ],
)
def test_wrong_names_are_answered_with_what_there_is(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        plot_heatmap([*rows(["h.0"], [1]), *rows(["h.0"], [1], name="mean")], **arguments)
    assert str(caught.value).startswith(said)
    assert not pyplot.get_fignums(), "a figure was made and left"


def test_no_rows() -> None:
    with pytest.raises(NothingToDraw, match="there are no readings yet"):
        plot_heatmap([], "rms")


def test_names_are_drawn_letter_by_letter() -> None:
    hostile = ["a$b$c", "<script>\n\u202e" + "x" * 500, "_", ""]
    found = [HistoryRow("train", 1, f"s_rms/{layer}", layer, "rms", 1.0) for layer in hostile]
    fig, ax = plot_heatmap(found, "rms")
    fig.canvas.draw()
    shown = labels(ax.yaxis)
    assert shown[0] == r"a\$b\$c" and all(len(label) <= 30 and "\n" not in label for label in shown)
