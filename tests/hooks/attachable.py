"""What tests of `attached` put on a model."""

from __future__ import annotations

from typing import Any

import torch

from mi_crow_lightning import ActivationStatistics, ScaleController

X = torch.ones(2, 8)


def double(signature: Any = "0", **options: Any) -> ScaleController:
    return ScaleController(signature, 2, **options)


def mean_of(layer: str, **options: Any) -> ActivationStatistics:
    return ActivationStatistics(layer, statistics=["mean"], histogram=False, **options)
