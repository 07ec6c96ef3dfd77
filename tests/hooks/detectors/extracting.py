"""Runs that extract, and the layers and numbers that their results are compared by."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from mi_crow_lightning import ContrastDetector, HookCallback, SteeringVector
from mi_crow_lightning.metrics.class_moments import GROUPS
from tests.hooks.detectors.contrasts import Reader
from tests.models import BLOCKS, trainer

PAIRS, HELD_OUT = 11, 5
ALL = dict(covariance=GROUPS, keep_samples=True)


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name.split(".")[-1].isdigit()][:BLOCKS]


def extract(detector: ContrastDetector, model: nn.Module, loader: Any, stage: str = "predict", **options: Any) -> Any:
    callback = HookCallback(detectors=detector)
    run = trainer(callback, **options)
    getattr(run, stage)(Reader(model), loader)
    return callback


def assert_directions(vector: SteeringVector, wanted: dict[str, np.ndarray], rtol: float = 1e-6) -> None:
    assert list(vector) == [f"model.{layer}" for layer in wanted]
    for layer, direction in wanted.items():
        atol = rtol * np.abs(direction).max()
        np.testing.assert_allclose(vector[f"model.{layer}"].numpy(), direction, rtol=rtol, atol=atol, err_msg=layer)


def scaled(unit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return unit * (unit @ delta) / (unit @ unit)


class Generating(Reader):
    """Predict generates, as an instruction-tuned model answers: the texts are what it generates."""

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model.generate(**tokens, max_new_tokens=5, do_sample=False, eos_token_id=None)
