"""What a plain torch hook reads of a layer in a Trainer, and the same from a callback of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mi_crow_lightning import HookCallback, Schedule
from tests.metrics.noted import Noted

EVERY = Schedule()
Means = list[tuple[int, float]]


class Reference(pl.Callback):
    """The mean of a layer's outputs over the batches since the last reading, by a plain torch hook."""

    def __init__(self, layer: str = "model.0") -> None:
        self.layer = layer
        self.seen: list[Tensor] = []
        self.validations: list[float] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.handle = pl_module.get_submodule(self.layer).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output.detach().double().clone())

    def mean(self) -> float:
        taken, self.seen = torch.cat([one.flatten() for one in self.seen]), []
        return taken.mean().item()

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.clear()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        mean = self.mean()
        if not trainer.sanity_checking:
            self.validations.append(mean)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.handle.remove()


def watching(**options: Any) -> HookCallback:
    return HookCallback(Noted("model.0", schedule=EVERY), **options)


def means(watch: HookCallback, stage: str) -> Means:
    rows = watch.history()
    return [(row.step, row.value) for row in rows if (row.stage, row.name) == (stage, "mean")]


def counts(watch: HookCallback) -> list[int]:
    """How many numbers each reading is of."""
    return [int(sum(r.value.counts)) for one in watch.detectors[0].noted for r in one if r.name == "histogram"]


def in_order(first: Sequence[pl.Callback], second: Sequence[pl.Callback], order: str) -> list[pl.Callback]:
    return [*first, *second] if order == "ours first" else [*second, *first]
