"""Three directions, what a detector should read along them by numpy, and a model with the detector on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import Layers, ProjectionDetector, SteeringController
from tests.hooks.controllers.cases import BATCH, run, vectors
from tests.models import WIDTH, llama

V = vectors(3)
U = V.double().numpy() / np.linalg.norm(V.double().numpy(), axis=1, keepdims=True)


def numpys(tokens: np.ndarray, unit: np.ndarray) -> dict[str, float]:
    along = tokens @ unit
    cosine = along / np.linalg.norm(tokens, axis=1)
    return dict(mean=along.mean(), std=along.std(), min=along.min(), max=along.max(), cosine=cosine.mean())


def assert_read(found: Any, expected: dict[tuple[str, str], float]) -> None:
    values = {(one.layer, one.name): one.value for one in found}
    assert values.keys() == expected.keys()
    assert values == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in expected.items()}


def registered(detector: ProjectionDetector, *others: Any, model: nn.Module | None = None) -> tuple[nn.Module, Layers]:
    model = model if model is not None else llama().eval()
    layers = Layers(model, allow_stacking=True)
    for hook in (detector, *others):
        layers.register_hook(None, hook)
    return model, layers


def conditional(detector: ProjectionDetector, when: Any, at: int = 2) -> Any:
    """One pass of a model with the detector and an edit under the condition."""
    return run(llama().eval(), "model.layers", BATCH, detector, SteeringController(at, torch.ones(WIDTH), when=when))


def touched(seen: Any, block: int) -> Tensor:
    return (seen.passed_on[block] != seen.made[block]).any(-1)
