"""A script: hooks that fail on one of two CPU processes, ``python -m tests.callback.program_failing_on_ranks FOLDER``.

Each rank writes what its callback read and warned of, run by run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback, MiCrowError, ScaleController, Schedule
from mi_crow_lightning.hooks import Detector, Reading
from mi_crow_lightning.metrics.collectives import Share
from tests.models import Module, loader, mlp, trainer, vector_data

EVERY = Schedule(stages=["train", "validate"])
STEPS = 4


def rank() -> int:
    return torch.distributed.get_rank()


class Sharing(Detector):
    """Counts batches over all ranks; its shares are what a function of the reading's number makes of the count."""

    def __init__(self, share_of: Callable[[int, Tensor], Any], **options: Any) -> None:
        super().__init__("model.0", name="mine", schedule=EVERY, **{"on_error": "disable", **options})
        self.share_of, self.readings_so_far = share_of, 0
        self.seen = torch.zeros(1)

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.seen += 1

    def share(self) -> Any:
        self.readings_so_far += 1
        merged = yield from self.share_of(self.readings_so_far, self.seen)
        return merged

    def readings(self) -> Any:
        return [Reading("model.0", "batches", self.over_ranks().sum().item())]

    def reset(self) -> None:
        self.seen.zero_()


def plain(number: int, seen: Tensor) -> Any:
    return (yield Share(seen, lambda ranks: ranks.sum(0)))


def fails_at(at: int, on: tuple[int, ...] = (1,)) -> Any:
    def share(number: int, seen: Tensor) -> Any:
        if number == at and rank() in on:
            raise ValueError("only here")
        return (yield Share(seen, lambda ranks: ranks.sum(0)))

    return share


def fails_when_merged(number: int, seen: Tensor) -> Any:
    def merge(ranks: Tensor) -> Tensor:
        raise ValueError("only here")

    return (yield Share(seen, merge if number == 2 else lambda ranks: ranks.sum(0)))


def grows(number: int, seen: Tensor) -> Any:
    """Another size in each reading, the same on both ranks."""
    return (yield Share(seen.expand(number) / number, lambda ranks: ranks.sum(0)))


def differs(number: int, seen: Tensor) -> Any:
    """Another size on each rank from the third reading on."""
    size = 1 + rank() if number > 2 else 1
    return (yield Share(seen.expand(size), lambda ranks: ranks.sum(0)))


def twice(number: int, seen: Tensor) -> Any:
    """Two rounds."""
    first = yield Share(seen, lambda ranks: ranks.amax(0))
    second = yield Share(torch.stack([seen, seen]), lambda ranks: ranks.sum(0))
    return first + second[0] - second[1] + (second[1] - first)


def meta_on_one(number: int, seen: Tensor) -> Any:
    device = "meta" if rank() and number == 2 else "cpu"
    return (yield Share(seen.to(device), lambda ranks: ranks.sum(0)))


SHARES: dict[str, Any] = {
    "plain": plain,
    "grows": grows,
    "two rounds": twice,
    "first": fails_at(1),
    "third": fails_at(3),
    "on both": fails_at(2, on=(0, 1)),
    "on rank 0": fails_at(2, on=(0,)),
    "merge": fails_when_merged,
    "differs": differs,
    "meta": meta_on_one,
}


def fit(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = dict(strategy=DDPStrategy(), devices=2, max_steps=STEPS, num_sanity_val_steps=0)
    runner = trainer(*callbacks, **{**quiet, **options})
    runner.fit(Module(mlp()), loader(vector_data(32)), loader(vector_data(16)))
    return runner


def shared(share_of: Any) -> dict[str, Any]:
    """A fit with one detector that fails, and one that does not."""
    hook = Sharing(share_of)
    watch = HookCallback([hook, ActivationStatistics("model.3", schedule=EVERY, statistics=["mean"], per_channel=True)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(watch)
    rows = [(row.stage, row.step, row.tag, row.value) for row in watch.history() if row.name != "channel_rms"]
    said = [str(one.message) for one in caught if "Sharing" in str(one.message)]
    return {"rows": rows, "said": said, "enabled": hook.enabled}


class Stateless(ScaleController):
    def state_dict(self) -> dict[str, Any]:
        if rank():
            raise ValueError("only here")
        return super().state_dict()


def saved(folder: str) -> str:
    """The error with which a run ends that cannot save a controller's state on rank 1."""
    watch = HookCallback(controllers=Stateless("model.0", 2.0, schedule=EVERY))
    try:
        fit(watch, enable_checkpointing=True, default_root_dir=folder)
    except MiCrowError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {name: shared(share_of) for name, share_of in SHARES.items()}
    found["saved"] = saved(folder)
    torch.save(found, f"{folder}/{rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
