"""float16: AMP with a gradient scaler, weights in float16, and what overflows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from mi_crow_lightning import HookCallback
from tests.metrics.noted import Noted
from tests.metrics.reference import PICTURES, assert_readings
from tests.metrics.test_exact_in_training import PerStep
from tests.models import Module, llama, loader, token_data, trainer

# Under AMP the residual stream is float32, and what the MLPs add to it is float16.
NAMES = [f"model.model.layers.{i}{part}" for i in range(4) for part in ("", ".mlp")]
BROKEN = ("model.model.layers.2", "model.model.layers.2.mlp", "model.model.layers.3", "model.model.layers.3.mlp")
SCALE = 2.0**8
OVERFLOW = 3  # the batch from which on it overflows


def amp() -> dict[str, Any]:
    """float16 AMP: Lightning makes "16-mixed" bfloat16 on a CPU, unless it is given the plugin itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


OPTIONS = {"16-mixed": amp, "16-true": lambda: {"precision": "16-true"}}


class Float16(Module):
    """Notes the dtype of a linear layer's output, and overflows in a block from a batch on."""

    def __init__(self, overflow: int | None = None) -> None:
        super().__init__(llama())
        self.overflow = overflow
        self.dtypes: set[torch.dtype] = set()
        self.model.model.layers[2].mlp.down_proj.register_forward_hook(lambda m, a, y: self.dtypes.add(y.dtype))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == self.overflow:
            with torch.no_grad():
                self.model.model.layers[2].mlp.down_proj.weight.mul_(1e4)
                self.model.model.layers[2].mlp.up_proj.weight.mul_(1e4)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fitted(module: Float16, accumulate: int, kind: str) -> tuple[list[Any], list[Any], Any]:
    """A fit of five batches, the last one smaller: each step's readings and reference, and the Trainer."""
    detectors = [Noted(signature, per_channel=True) for signature in ("block:*", "block:*.mlp")]
    seen = PerStep(NAMES, accumulate, 5)
    options = {"limit_val_batches": 0, "accumulate_grad_batches": accumulate, **OPTIONS[kind]()}
    runner = trainer(HookCallback(detectors), seen, **options)
    runner.fit(module, loader(token_data(18)), loader(token_data(4)))
    assert module.dtypes == {torch.float16}
    readings = [blocks + mlps for blocks, mlps in zip(*(detector.noted for detector in detectors), strict=True)]
    assert len(readings) == len(seen.steps) == -(-5 // accumulate)
    return readings, seen.steps, runner


@pytest.mark.documents("compatibility/16-mixed-16-true/detectors")
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_reads_what_numpy_does(kind: str, accumulate: int) -> None:
    steps = fitted(Float16(), accumulate, kind)[:2]
    for readings, expected in zip(*steps, strict=True):
        assert_readings(readings, expected, histograms=PICTURES)


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_overflows_is_counted_and_left_out(kind: str) -> None:
    (readings,), (expected,), runner = fitted(Float16(OVERFLOW), 5, kind)
    for name, values in expected.items():
        assert (values["nonfinite_count"] > 0) == (name in BROKEN)
        if values["nonfinite_count"]:
            values["nonfinite_batch"] = OVERFLOW
    assert_readings(readings, expected, histograms=PICTURES)
    largest = torch.finfo(torch.float16).max
    assert 0.9 * largest < expected[BROKEN[0]]["max"] <= largest  # some were near the end, others beyond it
    if kind == "16-mixed":
        assert runner.precision_plugin.scaler.get_scale() < SCALE  # the step was skipped
