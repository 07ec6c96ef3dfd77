"""A script: a fit on two CPU processes, ``python -m tests.metrics.program_fit_on_ranks ddp|sharded FOLDER``.

Each rank writes what plain hooks recorded, by batch and layer, and the readings of each log step.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, default_collate

from mi_crow_lightning import HookCallback
from tests.end_of_ranks import leave_ranks
from tests.metrics.noted import Noted
from tests.metrics.reference import Recorder
from tests.models import Module, llama, token_data, trainer

# Rows of each rank in each of its batches: uneven within a step, and in the last one.
SIZES = ((4, 4, 3, 1), (2, 4, 1, 1))
ACCUMULATE = 2
DEAD = 0.05  # what a channel must exceed: some do on one rank only
BREAKS = (3, 2)  # the batch from which on the second-last block of each rank overflows, in a pass of its own
NAMES = [f"model.model.layers.{i}{part}" for i in range(4) for part in ("", ".mlp")]
# Where that shows: behind the block's MLP, which is hooked before it breaks.
BROKEN = ("model.model.layers.2", "model.model.layers.3", "model.model.layers.3.mlp")


class Ranked(Module):
    """Each rank has data of its own; sharded, if the strategy is one that shards."""

    def train_dataloader(self) -> Any:
        rows, rank = iter(token_data(40)[20 * self.global_rank :]), self.global_rank
        batches = [default_collate([next(rows) for _ in range(size)]) for size in SIZES[rank]]
        return DataLoader(batches, batch_size=None)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # On all ranks, as a sharded layer's call is one of all.
        by = 0 if batch_idx >= BREAKS[self.global_rank] else 1
        handle = self.model.model.layers[2].mlp.register_forward_hook(lambda module, args, output: output / by)
        with torch.no_grad():
            self.model(**batch)
        handle.remove()
        return super().training_step(batch, batch_idx)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for block in self.model.model.layers:
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class Recorded(pl.Callback):
    def __init__(self) -> None:
        self.batches: list[dict[str, np.ndarray]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.recorder = Recorder({name: pl_module.get_submodule(name) for name in NAMES})

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.recorder.mask = batch["attention_mask"].bool()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen = self.recorder.seen
        self.batches.append({name: np.concatenate(parts) for name, parts in seen.items()})
        for parts in seen.values():
            parts.clear()


def main(kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    strategy = DDPStrategy() if kind == "ddp" else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    detectors, seen = (
        [Noted(each, per_channel=True, dead_threshold=DEAD) for each in ("block:*", "block:*.mlp")],
        Recorded(),
    )
    options = dict(accumulate_grad_batches=ACCUMULATE, limit_val_batches=0, use_distributed_sampler=False)
    runner = trainer(HookCallback(detectors), seen, strategy=strategy, devices=2, **options)
    runner.fit(Ranked(llama()))
    steps = [blocks + mlps for blocks, mlps in zip(*(detector.noted for detector in detectors), strict=True)]
    with Path(folder, f"{runner.global_rank}.pickle").open("wb") as file:
        pickle.dump({"batches": seen.batches, "steps": steps}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
