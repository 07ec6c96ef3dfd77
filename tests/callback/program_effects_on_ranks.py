"""A script: steered runs on two CPU processes, ``python -m tests.callback.program_effects_on_ranks FOLDER``.

Rank 1 has fewer batches in predict. Each rank writes what plain hooks of its own saw, and what the callback tells.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, default_collate

from mi_crow_lightning import HookCallback, ProjectionDetector, Schedule, SteeringController
from tests.callback.test_effects_over_batches import AroundBatches
from tests.end_of_ranks import leave_ranks
from tests.models import WIDTH, Module, llama, token_data, trainer

LAYER = "model.model.layers.1"
V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
SIZES = {"train": ((4, 2), (3, 3)), "predict": ((4, 3, 2), (4, 1))}


class Ranked(Module):
    """Each rank has data of its own."""

    def batches(self, stage: str) -> Any:
        rows = iter(token_data(40)[20 * self.global_rank :])
        sizes = SIZES[stage][self.global_rank]
        return DataLoader([default_collate([next(rows) for _ in range(size)]) for size in sizes], batch_size=None)

    def train_dataloader(self) -> Any:
        return self.batches("train")

    def predict_dataloader(self) -> Any:
        return self.batches("predict")


def main(folder: str) -> None:
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    for stage in ("train", "predict"):
        everywhere = Schedule(stages=["train", "predict"])
        steer = SteeringController(LAYER, 0.1 * V, 2.0, hook_id="steer", schedule=everywhere)
        watch = HookCallback(ProjectionDetector(LAYER, V, before_edits=True, schedule=everywhere), steer)
        around = AroundBatches(LAYER)
        options: dict[str, Any] = dict(limit_val_batches=0, use_distributed_sampler=False, log_every_n_steps=2)
        logger = TensorBoardLogger(folder, name=stage, version=0)
        runner = trainer(watch, around, strategy=DDPStrategy(), devices=2, logger=logger, **options)
        module: pl.LightningModule = Ranked(llama())
        runner.fit(module) if stage == "train" else runner.predict(module, return_predictions=False)
        told[stage] = {
            "effects": [tuple(effect) for effect in watch.effects()],
            "rows": [(row.tag, row.value) for row in watch.history()],
            "made": around.made,
            "passed_on": around.passed_on,
            "calls": around.calls,
        }
    torch.save(told, f"{folder}/{runner.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
