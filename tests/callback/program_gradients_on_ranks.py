"""A script: gradients, weights, tokens on two CPU processes, ``python -m tests.callback.program_gradients_on_ranks F``.

Each rank has data of its own, in micro-batches of different sizes. What each rank read goes to ``F/<rank>.pt``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from mi_crow_lightning import GradientStatistics, HookCallback, Schedule, TokenStatistics, WeightStatistics
from tests.callback.program_ranks import EMPTY, UNEVEN, Ranked, on_two
from tests.end_of_ranks import leave_ranks
from tests.hooks.detectors.gradients import by_layer

SIZES = ((3, 2, 1, 2), (1, 4, 2, 2))  # rows of each rank in each of its micro-batches, of which two make a step
LAYERS = [f"model.model.layers.{i}{part}" for i in range(4) for part in ("", ".mlp")]
PREDICT = Schedule(stages="predict")
RATE = 0.5


class Learning(Ranked):
    """A model that plain gradient descent trains."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Noted(pl.Callback):
    """Keeps the readings of detectors, with their histograms."""

    def __init__(self, *detectors: Any) -> None:
        self.noted: dict[str, list[Any]] = {detector.tag_prefix: [] for detector in detectors}
        for detector in detectors:
            self.follow(detector)

    def follow(self, detector: Any) -> None:
        read, noted = detector.readings, self.noted[detector.tag_prefix]

        def readings() -> list[Any]:
            found = [*read()]
            noted.append(by_layer(found))
            return found

        detector.readings = readings


def fitted(make: Callable[..., pl.Trainer], **options: Any) -> dict[str, list[Any]]:
    """The readings of two steps of two micro-batches."""
    detectors = [GradientStatistics(LAYERS, per_channel=True), WeightStatistics(LAYERS), TokenStatistics(LAYERS)]
    noted = Noted(*detectors)
    make(HookCallback(detectors), limit_val_batches=0, accumulate_grad_batches=2, **options).fit(Learning(SIZES))
    return noted.noted


def predicted(make: Callable[..., pl.Trainer], sizes: Any) -> list[Any]:
    """The readings of tokens in a predict; a rank may have more batches than the other, or none."""
    detector = TokenStatistics(LAYERS, schedule=PREDICT)
    noted = Noted(detector)
    make(HookCallback(detector)).predict(Ranked(sizes))
    return noted.noted[detector.tag_prefix]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    ddp = on_two(DDPStrategy)
    too_large = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**60))
    found = {
        "ddp": fitted(ddp),
        "skipped": fitted(ddp, plugins=[too_large]),
        "predicted": [predicted(ddp, sizes) for sizes in (UNEVEN, EMPTY)],
        "sharded": fitted(on_two(lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))),
    }
    torch.save(found, f"{folder}/{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
