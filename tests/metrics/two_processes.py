"""A script: a fit on two CPU processes, ``python -m tests.metrics.two_processes ddp|sharded FOLDER``.

Each rank writes what plain hooks recorded, by step and layer, and the callback's history.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, default_collate

from mi_crow_lightning import ActivationStatistics, HookCallback
from tests.metrics.reference import Recorder
from tests.models import Module, llama, token_data, trainer

# Rows of each rank in each of its batches: uneven within a step, and in the last one.
SIZES = ((4, 4, 3, 1), (2, 4, 1, 1))
ACCUMULATE = 2
NAMES = [f"model.model.layers.{i}{part}" for i in range(4) for part in ("", ".mlp")]


class Ranked(Module):
    """Each rank has data of its own; sharded, if the strategy is one that shards."""

    def train_dataloader(self) -> Any:
        rows, rank = iter(token_data(40)[20 * self.global_rank :]), self.global_rank
        batches = [default_collate([next(rows) for _ in range(size)]) for size in SIZES[rank]]
        return DataLoader(batches, batch_size=None)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for block in self.model.model.layers:
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class Recorded(pl.Callback):
    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.recorder = Recorder({name: pl_module.get_submodule(name) for name in NAMES})

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.recorder.mask = batch["attention_mask"].bool()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen = self.recorder.seen
        self.batches.append({name: torch.from_numpy(parts.pop()) for name, parts in seen.items()})
        assert not any(seen.values())


def main(kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    strategy = DDPStrategy() if kind == "ddp" else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    watch, seen = HookCallback([ActivationStatistics("block:*"), ActivationStatistics("block:*.mlp")]), Recorded()
    options = dict(accumulate_grad_batches=ACCUMULATE, limit_val_batches=0, use_distributed_sampler=False)
    runner = trainer(watch, seen, strategy=strategy, devices=2, **options)
    runner.fit(Ranked(llama()))
    rows = [(row.step, row.layer, row.name, row.value) for row in watch.history()]
    torch.save({"batches": seen.batches, "rows": rows}, f"{folder}/{runner.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
