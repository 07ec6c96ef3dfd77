"""The changes of controllers, drawn."""

from __future__ import annotations

import math

import pytest
from matplotlib import pyplot

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures import plot_effects
from mi_crow_lightning.hooks.effects import Effect


def effect(
    layer: int, mean: float, most: float, stage: str = "predict", hook: str = "Steer", broken: int = 0
) -> Effect:
    return Effect(hook, f"model.layers.{layer}", stage, 10 * layer, 2, mean, most, broken)


def test_bars_reach_to_the_mean_and_lines_to_the_largest() -> None:
    fig, ax = plot_effects([effect(1, 0.25, 0.5), effect(2, 0.75, 1.5)])
    (bars,) = ax.containers
    assert [bar.get_width() for bar in bars] == [0.25, 0.75]
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx([0, 1])
    (lines,) = ax.collections
    assert [segment[:, 0].tolist() for segment in lines.get_segments()] == [[0.25, 0.5], [0.75, 1.5]]
    assert [text.get_text() for text in ax.texts] == ["10 tokens", "20 tokens"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2"]
    assert ax.get_title(loc="left") == "changes of Steer at model.layers"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["largest", "predict"]
    assert pyplot.get_fignums() == [fig.number]


def test_stages_and_hooks_stand_apart() -> None:
    both = [effect(1, 0.1, 0.2, "train"), effect(1, 0.3, 0.4), effect(1, 0.5, 0.6, hook="Ablate")]
    _, ax = plot_effects(both)
    assert [[bar.get_width() for bar in bars] for bars in ax.containers] == [[0.1], [0.3, 0.5]]
    assert [bars.get_label() for bars in ax.containers] == ["training", "predict"]
    middles = sorted(bar.get_y() + bar.get_height() / 2 for bars in ax.containers for bar in bars)
    assert middles[1] - middles[0] == pytest.approx(0.4) and middles[2] - middles[1] > 1
    assert {text.get_text() for text in ax.texts} >= {"Steer", "Ablate"}


def test_nan_infinity_and_broken_tokens() -> None:
    fig, ax = plot_effects(
        [effect(0, math.nan, math.nan), effect(1, math.inf, math.inf), effect(2, 0.5, 0.6, broken=3)]
    )
    fig.canvas.draw()
    assert [bar.get_width() for bar in ax.containers[0]] == [0.0, 0.0, 0.5]
    assert [text.get_text() for text in ax.texts] == ["0 tokens", "10 tokens, ratio inf", "20 tokens"]
    marks = {line.get_label(): line for line in ax.lines}
    assert marks["made NaN or infinite"].get_ydata().tolist() == [2.0]
    whole, ax = plot_effects([effect(2, 0.5, 0.6)])
    assert "made NaN or infinite" not in {line.get_label() for line in ax.lines} and whole is ax.figure


def test_200_layers_on_given_axes() -> None:
    figure, ax = pyplot.subplots()
    assert plot_effects([effect(layer, 0.5, 0.6) for layer in range(200)], ax=ax) == (figure, ax)
    figure.canvas.draw()
    assert len(ax.get_yticks()) < 40 and not ax.texts and len(pyplot.get_fignums()) == 1


def test_no_effects() -> None:
    with pytest.raises(NothingToDraw, match="there are no effects yet"):
        plot_effects([])
