"""A script: hooks that fail on one of two CPU processes, ``python -m tests.callback.program_failing_on_ranks FOLDER``.

Each rank writes what its callback read and warned of, run by run.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, HookCallback, MiCrowError, ScaleController, Schedule, attached
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
        super().__init__("model.0", name="mine", **{"schedule": EVERY, "on_error": "disable", **options})
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
    first = yield Share(seen, lambda ranks: ranks.amax(0), more=True)
    second = yield Share(torch.stack([seen, seen]), lambda ranks: ranks.sum(0))
    return first + second[0] - second[1] + (second[1] - first)


def fails_in_the_second_round(on: tuple[int, ...], returns: bool = False) -> Any:
    """Rounds of one number and of five; in the third reading some ranks fail, or end, between them."""

    def share(number: int, seen: Tensor) -> Any:
        first = yield Share(seen, lambda ranks: ranks.sum(0), more=True)
        if number == 3 and rank() in on:
            if returns:
                return first
            raise ValueError("only here")
        second = yield Share(seen.expand(5), lambda ranks: ranks.sum(0))
        return second[:1]

    return share


def may_follow(number: int, seen: Tensor) -> Any:
    """A second round in every other reading, on both ranks."""
    first = yield Share(seen, lambda ranks: ranks.sum(0), more=True)
    return first if number % 2 else (yield Share(seen, lambda ranks: ranks.sum(0)))


def fails_when_the_first_is_merged(number: int, seen: Tensor) -> Any:
    def merge(ranks: Tensor) -> Tensor:
        if number == 3 and rank():
            raise ValueError("only here")
        return ranks.sum(0)

    yield Share(seen, merge, more=True)
    return (yield Share(seen, lambda ranks: ranks.sum(0)))


def fails_after_the_last(number: int, seen: Tensor) -> Any:
    merged = yield Share(seen, lambda ranks: ranks.sum(0))
    if number == 3 and rank():
        raise ValueError("only here")
    return merged


def announced_on_one(number: int, seen: Tensor) -> Any:
    merged = yield Share(seen, lambda ranks: ranks.sum(0), more=number == 3 and rank() == 1)
    return merged


def unannounced(number: int, seen: Tensor) -> Any:
    yield Share(seen, lambda ranks: ranks.sum(0))
    return (yield Share(seen, lambda ranks: ranks.sum(0)))


def meta_on_one(number: int, seen: Tensor) -> Any:
    device = "meta" if rank() and number == 2 else "cpu"
    return (yield Share(seen.to(device), lambda ranks: ranks.sum(0)))


SHARES: dict[str, Any] = {
    "plain": plain,
    "grows": grows,
    "two rounds": twice,
    "may follow": may_follow,
    "second round": fails_in_the_second_round(on=(1,)),
    "second round on rank 0": fails_in_the_second_round(on=(0,)),
    "second round on both": fails_in_the_second_round(on=(0, 1)),
    "second round is missing": fails_in_the_second_round(on=(1,), returns=True),
    "first merge": fails_when_the_first_is_merged,
    "after the last": fails_after_the_last,
    "announced on one": announced_on_one,
    "unannounced": unannounced,
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


def taken_outside(name: str) -> dict[str, Any]:
    """The readings of four passes outside a Trainer."""
    hook, healthy = Sharing(SHARES[name], schedule=None), Sharing(plain, schedule=None)
    model = nn.Sequential(OrderedDict(model=mlp()))
    with warnings.catch_warnings(record=True) as caught, attached(model, [hook, healthy]) as layers:
        warnings.simplefilter("always")
        taken = []
        for _ in range(STEPS):
            model(torch.ones(2, 8))
            taken.append([reading.value for reading in layers.take_readings()])
    return {"taken": taken, "said": [str(one.message) for one in caught], "enabled": hook.enabled}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {name: shared(share_of) for name, share_of in SHARES.items()}
    found["saved"] = saved(folder)
    found["outside"] = {name: taken_outside(name) for name in SHARES}
    torch.save(found, f"{folder}/{rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
