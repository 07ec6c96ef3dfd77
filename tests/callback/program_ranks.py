"""A script: many runs on two CPU processes, ``python -m tests.callback.program_ranks FOLDER``.

The last one breaks off because of a hook on rank 1; ``FOLDER 0`` makes only that one, broken off on rank 0. Each rank
has data of its own; the functions below, called in one process, run on the data of both. What the runs tell on a rank
goes to ``FOLDER/<rank>.pt``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset, default_collate

from benchmarks.copies import Collectives, HostCopies
from mi_crow_lightning import (
    ActivationStatistics,
    ContrastDetector,
    Detector,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import RegistrationError
from tests.end_of_ranks import leave_ranks
from tests.models import WIDTH, Module, llama, token_data, trainer

LAYER = "model.model.layers.1"
V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
EVEN = ((2, 2, 2, 2), (2, 2, 2, 2))  # rows of each rank in each of its batches
UNEVEN = ((3, 2, 1), (4,))
EMPTY = ((3, 2), ())
ALWAYS = Schedule(stages=["train", "validate", "predict"])


class Stream(IterableDataset[Any]):
    """Batches whose number is not known before: there may be none."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Ranked(Module):
    """Each rank's data; in one process that of both, training batches joined step by step, others by turns."""

    def __init__(self, sizes: Any, skip: int = 0) -> None:
        super().__init__(llama(attention_dropout=0.0))
        self.sizes, self.skip = sizes, skip

    def batches(self, rank: int) -> list[Any]:
        rows = iter(token_data(40)[20 * rank :])
        label = torch.tensor([0, 1, 0, 1])
        batches = [default_collate([next(rows) for _ in range(size)]) for size in self.sizes[rank]]
        return [{**batch, "label": label[: len(batch["input_ids"])]} for batch in batches[self.skip :]]

    def loader(self, joined: bool) -> Any:
        if self.trainer.world_size > 1:
            batches = self.batches(self.global_rank)
        elif joined:
            both = zip(self.batches(0), self.batches(1), strict=True)
            batches = [{key: torch.cat([one[key], other[key]]) for key in one} for one, other in both]
        else:
            both = zip_longest(self.batches(0), self.batches(1))
            batches = [batch for step in both for batch in step if batch is not None]
        return DataLoader(Stream(batches), batch_size=None)

    def loss(self, batch: Any) -> Tensor:
        return super().loss({key: value for key, value in batch.items() if key != "label"})

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def train_dataloader(self) -> Any:
        return self.loader(joined=True)

    def val_dataloader(self) -> Any:
        return self.loader(joined=False)

    predict_dataloader = val_dataloader

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not hasattr(self, "sharded"):
            self.sharded = True
            for block in self.model.model.layers:
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class FailsOn(ActivationStatistics):
    """Fails on one rank, in the batches from the second on."""

    def __init__(self, rank: int, **options: Any) -> None:
        super().__init__(LAYER, name="failing", **options)
        self.rank = rank

    def observe(self, x: Tensor, ctx: Any) -> None:
        if ctx.batch_idx == 1 and torch.distributed.get_rank() == self.rank:
            raise ValueError("only here")
        super().observe(x, ctx)


class Reporting(Detector):
    """Reports its batches on every rank."""

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.report_event(f"rank {torch.distributed.get_rank()}, batch {ctx.batch_idx}")


class Counting(pl.Callback):
    """Counts collectives and copies to the host from its place in the list of callbacks to the one of its `End`."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.modes = Collectives(), HostCopies()
        for mode in self.modes:
            mode.__enter__()


class End(pl.Callback):
    def __init__(self, counting: Counting) -> None:
        self.counting = counting

    def on_train_batch_end(self, *args: Any) -> None:
        collectives, copies = self.counting.modes
        copies.__exit__(None, None, None)
        collectives.__exit__(None, None, None)
        self.counting.counts.append((collectives.count, copies.count))


def detectors(layers: str = "block:*") -> list[Any]:
    """One of each, and some twice."""
    return [
        ActivationStatistics(layers, schedule=ALWAYS, per_channel=True),
        ActivationStatistics("block:*.mlp", statistics=["mean", "max"], schedule=ALWAYS),
        ProjectionDetector(layers, V, schedule=ALWAYS),
        LayerActivationDetector("block:0-1", name="held", schedule=ALWAYS, keep="all"),
    ]


def steering(**options: Any) -> SteeringController:
    return SteeringController(LAYER, 0.1 * V, 2.0, hook_id="steer", schedule=ALWAYS, **options)


def told(watch: HookCallback, runner: pl.Trainer) -> dict[str, Any]:
    return {
        "rows": [(row.stage, row.step, row.tag, row.value) for row in watch.history()],
        "metrics": {tag: float(value) for tag, value in runner.callback_metrics.items() if "loss" not in tag},
        "effects": [tuple(effect) for effect in watch.effects()],
    }


def steered(make: Callable[..., pl.Trainer]) -> dict[str, Any]:
    """A fit and a predict, watched and steered: the readings, the weights, the predictions."""
    found: dict[str, Any] = {}
    watch, module = HookCallback(detectors(), steering(), log_every_n_steps=2, monitor=["*"]), Ranked(EVEN)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    runner = make(watch, limit_val_batches=2)
    runner.fit(module)
    state = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in module.state_dict().items()
    }
    found["fit"] = told(watch, runner) | {"weights": state}
    watch, module = HookCallback(detectors(), steering(), monitor=["*"]), Ranked(EVEN)
    runner = make(watch)
    found["predictions"] = runner.predict(module)
    found["predict"] = told(watch, runner)
    return found


def evaluated(make: Callable[..., pl.Trainer], sizes: Any) -> dict[str, Any]:
    """Predict with a number of batches of its own on each rank, of which one may have none."""
    contrast = ContrastDetector(LAYER)
    watch, module = HookCallback([*detectors(), contrast], steering(), monitor=["*"]), Ranked(sizes)
    runner = make(watch)
    runner.predict(module)
    return told(watch, runner) | {"vector": contrast.vectors(force=True)[LAYER]}


def failing(make: Callable[..., pl.Trainer]) -> dict[str, Any]:
    """A detector that fails on rank 1 in validation, which comes twice; and one that the user disables there."""
    fails, own = FailsOn(1, schedule=ALWAYS), ProjectionDetector(LAYER, V, schedule=ALWAYS)
    watch = HookCallback([ActivationStatistics(LAYER, schedule=ALWAYS), fails, own])
    if torch.distributed.get_rank() == 1:
        own.disable()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = make(watch, max_epochs=2)
        runner.fit(Ranked(EVEN))
    said = [str(warning.message).partition("\n")[0] for warning in caught if "FailsOn" in str(warning.message)]
    return told(watch, runner) | {"said": said, "enabled": fails.enabled}


def counted(make: Callable[..., pl.Trainer], layers: str) -> list[tuple[int, int]]:
    begin = Counting()
    *summing, _ = detectors(layers)
    make(begin, HookCallback(summing, steering()), End(begin), limit_val_batches=0).fit(Ranked(EVEN))
    return begin.counts


def interrupted(make: Callable[..., pl.Trainer], folder: str) -> dict[str, Any]:
    """A fit of four steps with one reading, and another one that goes on from the middle of it."""
    found = {}
    for name, path, skip in (("whole", None, 0), ("resumed", f"{folder}/whole-2.ckpt", 2)):
        watch = watching()
        save = ModelCheckpoint(
            folder, f"{name}-{{step}}", auto_insert_metric_name=False, every_n_train_steps=2, save_top_k=-1
        )
        options = dict(limit_val_batches=0, enable_checkpointing=True, log_every_n_steps=4, max_steps=4)
        runner = make(watch, save, **options)
        runner.fit(Ranked(EVEN, skip), ckpt_path=path)
        found[name] = told(watch, runner)
    return found


def watching() -> HookCallback:
    """What `interrupted` watches."""
    statistics = ActivationStatistics("block:*", hook_id="statistics", schedule=ALWAYS)
    along = ProjectionDetector(LAYER, V, hook_id="along", schedule=ALWAYS)
    steer = SteeringController(LAYER, V, 0.1, hook_id="steer", schedule=Schedule(stages="train"))
    return HookCallback([statistics, along], steer, name="watch")


def logged(make: Callable[..., pl.Trainer], folder: str) -> None:
    loggers = [TensorBoardLogger(folder, "board"), CSVLogger(folder, "csv")]
    watch = HookCallback([*detectors(), Reporting(LAYER, schedule=Schedule(stages="train"))])
    make(watch, logger=loggers, limit_val_batches=0).fit(Ranked(EVEN))


def refused(make: Callable[..., pl.Trainer], may_be_left_out: bool = False) -> str:
    module = Ranked(EVEN)
    module.allow_zero_length_dataloader_with_multiple_devices = may_be_left_out
    try:
        make(HookCallback(detectors())).predict(module)
    except RegistrationError as error:
        return str(error)
    return ""


def on_two(strategy: Callable[[], Any]) -> Callable[..., pl.Trainer]:
    def make(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        fixed: dict[str, Any] = dict(strategy=strategy(), devices=2, use_distributed_sampler=False)
        return trainer(*callbacks, **{**fixed, "num_sanity_val_steps": 0, **options})

    return make


def in_one(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    if "limit_val_batches" in options:
        options["limit_val_batches"] = 4 if options["limit_val_batches"] else 0
    return trainer(*callbacks, num_sanity_val_steps=0, **options)


def broken(make: Callable[..., pl.Trainer], folder: str, rank: int) -> None:
    Path(folder, f"{os.environ.get('LOCAL_RANK', 0)}.pid").write_text(str(os.getpid()))
    make(HookCallback([*detectors(), FailsOn(rank, schedule=ALWAYS, on_error="raise")])).fit(Ranked(EVEN))


def main(folder: str, fails_on: str = "") -> None:
    torch.set_num_threads(1)
    ddp = on_two(DDPStrategy)
    if not fails_on:
        all_runs(ddp, folder)
    broken(ddp, folder, rank=int(fails_on or 1))


def all_runs(ddp: Callable[..., pl.Trainer], folder: str) -> None:
    found: dict[str, Any] = {
        "ddp": steered(ddp),
        "uneven": evaluated(ddp, UNEVEN),
        "empty": evaluated(ddp, EMPTY),
        "failing": failing(ddp),
        "counted": [counted(ddp, layers) for layers in ("block:0", "block:*")],
    }
    found["ddp"]["interrupted"] = interrupted(ddp, folder)
    found["left out"] = refused(ddp, may_be_left_out=True)
    logged(ddp, folder)
    sharded = on_two(lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))
    found["sharded"] = steered(sharded)
    found["sharded"]["interrupted"] = interrupted(sharded, f"{folder}/sharded")
    found["split"] = refused(on_two(lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)))
    torch.save(found, f"{folder}/{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
