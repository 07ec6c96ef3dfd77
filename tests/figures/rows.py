"""Rows to draw, and the same numbers as dictionaries: the tests' independent reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mi_crow_lightning.loggers import HistogramRow, HistoryRow
from mi_crow_lightning.loggers.tags import stage_segment

Value = Callable[[int, int], float]


def wave(layer: int, step: int) -> float:
    return (layer + 1) * (2 + math.sin(step / 7 + layer))


def always(value: float) -> Value:
    return lambda layer, step: value


def blocks(count: int, stack: str = "model.layers") -> list[str]:
    return [f"{stack}.{i}" for i in range(count)]


def rows(
    layers: Sequence[str],
    steps: Iterable[int],
    value: Value = wave,
    name: str = "rms",
    stage: str = "train",
    prefix: str = "activations",
    suffix: str = "",
) -> list[HistoryRow]:
    return [
        HistoryRow(stage, step, f"{prefix}_{name}/{stage_segment(stage)}{layer}{suffix}", layer, name, value(at, step))
        for step in steps
        for at, layer in enumerate(layers)
    ]


def matrix(count: int, steps: Sequence[int], value: Value = wave) -> np.ndarray:
    return np.array([[value(layer, step) for step in steps] for layer in range(count)])


def counted(
    steps: Iterable[int],
    layer: str = "model.layers.3",
    edges: tuple[float, ...] = (-4.0, -1.0, 0.0, 1.0, 4.0),
    **of: Any,
) -> list[HistogramRow]:
    """Histograms whose counts are ``step + bin``, so that each differs."""
    stage = of.get("stage", "train")
    tag = f"activations/{stage_segment(stage)}{layer}"
    return [
        HistogramRow(stage, step, tag, layer, "histogram", edges, tuple(float(step + i) for i in range(len(edges) - 1)))
        for step in steps
    ]
