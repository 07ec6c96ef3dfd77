"""Detectors as a newcomer writes them, and what numpy says of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_crow_lightning import HookCallback, SummingDetector
from mi_crow_lightning.metrics.running_sums import masked_sum


class PositiveShare(SummingDetector):
    """The whole of what a newcomer writes."""

    names, sums = ("positive_share",), 2

    def measure(self, x, mask, ctx):
        x = x if mask is None else x[mask]
        return torch.stack(((x > 0).sum(), torch.tensor(x.numel())))

    def values(self, s):
        return {"positive_share": s[0] / s[1]}


class Traced(PositiveShare):
    """As it is written for a graph that compiles it, too."""

    traceable = True

    def measure(self, x, mask, ctx):
        return masked_sum(x > 0, mask), masked_sum(torch.ones_like(x), mask)

    def _measured_in_graph(self, *args):
        raise AssertionError("it is to be compiled, not called")


class Spread(SummingDetector):
    """Three sums that are each merged in another way."""

    names, sums = ("positive_share", "least", "most"), 4
    merge = ("sum", "sum", "min", "max")

    def measure(self, x: Tensor, mask: Tensor | None, ctx: Any) -> Sequence[Tensor | float]:
        x = x if mask is None else x[mask]
        return (x > 0).sum(), x.numel(), x.amin(), x.amax()

    def values(self, sums: Tensor) -> dict[str, float | Tensor]:
        return {"positive_share": sums[0] / sums[1], "least": sums[2], "most": sums[3]}


def numpys(tokens: np.ndarray) -> dict[str, float]:
    return {"positive_share": (tokens > 0).mean(), "least": tokens.min(), "most": tokens.max()}


def values_of(watch: HookCallback, stage: str, step: int | None = None) -> dict[tuple[str, str], float]:
    rows = [row for row in watch.history() if row.stage == stage and step in (None, row.step)]
    return {(row.layer, row.name): row.value for row in rows}


def assert_numpys(found: dict[tuple[str, str], float], expected: dict[str, dict[str, float]]) -> None:
    flat = {(layer, name): value for layer, values in expected.items() for name, value in values.items()}
    assert found == {key: pytest.approx(value, rel=1e-12) for key, value in flat.items()}
