"""A script: two processes, each of them a node that torchrun starts, ``torchrun ... program_nodes.py FOLDER``.

First runs that are alike on both, then callbacks that differ, and last a rank that dies. What a rank finds goes to
``FOLDER/<rank>.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import distributed

from mi_crow_lightning import (
    ActivationStatistics,
    HookCallback,
    ProjectionDetector,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.runs.rank_plans import Plan
from mi_crow_lightning.runs.roll_call import RollCall
from tests.callback.program_ranks import ALWAYS, EVEN, Ranked, detectors, steering, told
from tests.callback.runs import OnEvent
from tests.models import WIDTH, Module, handles, loader, mlp, trainer, vector_data

Make = Callable[..., HookCallback]


def statistics(*names: str, layers: str = "model.*", **options: Any) -> ActivationStatistics:
    return ActivationStatistics(layers, statistics=list(names or ("mean",)), **{"schedule": ALWAYS, **options})


def along(*names: str) -> ProjectionDetector:
    return ProjectionDetector("model.0", vectors={name: torch.ones(WIDTH) for name in names}, schedule=ALWAYS)


def watch(*hooks: Any, **options: Any) -> HookCallback:
    return HookCallback(list(hooks), **options)


def steer(strength: float = 1.0, vector: float = 1.0) -> HookCallback:
    return HookCallback(
        None, SteeringController("model.0", torch.full((WIDTH,), vector), strength, schedule=Schedule())
    )


# What each rank has.
DIFFERENT: dict[str, tuple[Make, Make]] = {
    "layers": (lambda: watch(statistics()), lambda: watch(statistics(layers="model.0"))),
    "statistics": (lambda: watch(statistics("mean")), lambda: watch(statistics("mean", "max"))),
    "histogram": (lambda: watch(statistics()), lambda: watch(statistics(histogram=False))),
    "channels": (lambda: watch(statistics()), lambda: watch(statistics(per_channel=True))),
    "threshold": (lambda: watch(statistics()), lambda: watch(statistics(dead_threshold=0.5))),
    "tokens": (lambda: watch(statistics()), lambda: watch(statistics(tokens="last"))),
    "directions": (lambda: watch(along("a")), lambda: watch(along("a", "b"))),
    "interval": (lambda: watch(statistics(), log_every_n_steps=1), lambda: watch(statistics(), log_every_n_steps=2)),
    "schedule": (lambda: watch(statistics()), lambda: watch(statistics(schedule=Schedule(batches=[1])))),
    "prefix": (lambda: watch(statistics()), lambda: watch(statistics(name="mine"))),
    "hook_id": (lambda: watch(statistics(hook_id="a")), lambda: watch(statistics(hook_id="b"))),
    "order": (lambda: watch(statistics(), along("a")), lambda: watch(along("a"), statistics())),
    "one more": (lambda: watch(statistics()), lambda: watch(statistics(), along("a"))),
    "controller": (lambda: watch(statistics()), lambda: HookCallback(statistics(), steer().controllers)),
    "per_dataloader": (lambda: watch(statistics()), lambda: watch(statistics(), per_dataloader=True)),
    "dry_run": (lambda: watch(statistics()), lambda: watch(statistics(), dry_run=True)),
    "no such layer": (lambda: watch(statistics()), lambda: watch(statistics(layers="block:7"))),
}
UNEQUAL: dict[str, tuple[Make, Make]] = {
    "strength": (lambda: steer(strength=1.0), lambda: steer(strength=2.0)),
    "vector": (lambda: steer(vector=1.0), lambda: steer(vector=3.0)),
}


def on_nodes(strategy: Callable[[], Any]) -> Callable[..., pl.Trainer]:
    def make(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        nodes: dict[str, Any] = dict(strategy=strategy(), num_nodes=2, use_distributed_sampler=False)
        return trainer(*callbacks, num_sanity_val_steps=0, **nodes, **options)

    return make


def alike(make: Callable[..., pl.Trainer]) -> dict[str, Any]:
    """A fit and a predict, watched and steered."""
    found: dict[str, Any] = {}
    for run in ("fit", "predict"):
        callback = HookCallback(detectors(), steering(), log_every_n_steps=2, monitor=["*"])
        runner = make(callback, limit_val_batches=2)
        getattr(runner, run)(Ranked(EVEN))
        found[run] = told(callback, runner)
    return found


def attempt(
    make: Callable[..., pl.Trainer], *callbacks: pl.Callback, stage: str = "predict", **options: Any
) -> dict[str, Any]:
    """A run, the error or the warnings that it ends with, the batches that it comes to, and the handles it leaves."""
    module, batches, said = Module(mlp()), [], []
    count = OnEvent(f"on_{'train' if stage == 'fit' else stage}_batch_start", lambda *facts: batches.append(facts[-1]))
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            getattr(make(*callbacks, count, limit_val_batches=0, **options), stage)(module, loader(vector_data(8)))
        except (RegistrationError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    said += [str(warning.message) for warning in caught if "on all ranks" in str(warning.message)]
    return {
        "said": said,
        "batches": batches,
        "handles": len(handles(module)),
        "seconds": time.monotonic() - began,
    }


def stop(*facts: Any) -> None:
    raise RuntimeError("this rank stops")


def absent(make: Callable[..., pl.Trainer], rank: int) -> list[Any]:
    """The callback stands on one rank only; the other one would wait for it in the barrier before its first batch."""
    found = []
    for has in range(2):
        callbacks = [watch(statistics())] if rank == has else [OnEvent("on_predict_start", stop)]
        found.append(attempt(make, *callbacks))
        found.append(attempt(make, watch(statistics())))
    return found


def second_missing(make: Callable[..., pl.Trainer], rank: int) -> dict[str, Any]:
    """One rank has one callback more, which stands second."""
    return attempt(make, watch(statistics()), *([watch(along("a"))] if rank else []))


def breaks_off(make: Callable[..., pl.Trainer], rank: int) -> dict[str, Any]:
    """Another callback raises on one rank before the hooks are compared."""
    first = [OnEvent("on_predict_start", stop)] if rank else []
    return attempt(make, *first, watch(statistics()))


def silent(rank: int) -> str:
    """A rank that never answers: the other waits as long as a collective would."""
    roll_call = RollCall("silent")
    roll_call._limit = timedelta(seconds=0.3)
    distributed.barrier()
    try:
        if rank == 0:
            with roll_call.starting():
                roll_call.compare(Plan({}, {}))
    except RegistrationError as error:
        return str(error)
    return ""


def keys(make: Callable[..., pl.Trainer]) -> list[int]:
    """The number of keys in the store before and after three runs."""
    store = distributed.distributed_c10d._get_default_store()
    counts = []
    for runs in (3, 0):
        distributed.barrier()
        counts.append(store.num_keys())
        distributed.barrier()
        for _ in range(runs):
            attempt(make, watch(statistics()))
    return counts


def alone(rank: int) -> dict[str, Any]:
    """Rank 0 evaluates in a Trainer for one process, while the process group of the runs before is there."""
    return attempt(trainer, watch(statistics())) if rank == 0 else {}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    ddp = on_nodes(DDPStrategy)
    found: dict[str, Any] = {"ddp": alike(ddp)}
    sharded = on_nodes(lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))
    found["sharded"] = alike(sharded)
    rank = distributed.get_rank()
    found["different"] = {name: attempt(ddp, makes[rank](), stage="fit") for name, makes in DIFFERENT.items()}
    trainers = {"log_every_n_steps": 1 + rank}
    found["different"]["interval of the Trainer"] = attempt(ddp, watch(statistics()), stage="fit", **trainers)
    found["different"]["number of callbacks"] = second_missing(ddp, rank)
    found["unequal"] = {name: attempt(ddp, makes[rank]()) for name, makes in UNEQUAL.items()}
    found["absent"] = absent(ddp, rank)
    found["breaks off"] = breaks_off(ddp, rank)
    found["silent"] = silent(rank)
    found["keys"] = keys(ddp)
    found["alone"] = alone(rank)
    torch.save(found, f"{folder}/{rank}.pt")
    kill = [OnEvent("on_train_batch_end", lambda *facts: os.kill(os.getpid(), signal.SIGKILL))] if rank else []
    lost = attempt(ddp, *kill, watch(statistics(), log_every_n_steps=1), stage="fit")
    torch.save(lost, f"{folder}/lost.tmp")
    os.rename(f"{folder}/lost.tmp", f"{folder}/lost.pt")  # it is whole when it is seen


if __name__ == "__main__":
    main(*sys.argv[1:])
