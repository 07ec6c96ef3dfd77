"""The tokens that a detector finds in a model's pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import Detector, Layers, Tokens


class Mask(Detector):
    """The mask of its last call; every element where there is none."""

    def __init__(self, signature: Any, which: str = "all") -> None:
        super().__init__(layer_signature=signature)
        self.tokens = Tokens(which)
        self.calls: list[Tensor] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        mask = self.tokens.mask(x, ctx)
        self.calls.append(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)


def first_of(out: Any) -> Tensor:
    """The activation in what a block returns: a tensor, or a tuple of it and more."""
    x: Tensor = out[0] if isinstance(out, tuple) else out
    return x


def mask_of(model: nn.Module, signature: Any = "block:1", which: str = "all", **call: Any) -> list[list[int]]:
    detector = Mask(signature, which)
    layers = Layers(model)
    layers.register_hook(None, detector)
    model(**call)
    layers.unregister_hook(detector)
    return detector.calls[-1].int().tolist()
