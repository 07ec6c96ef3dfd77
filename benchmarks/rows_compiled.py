"""A compiled model, bare and watched: graph breaks, compilations, and the ratio of their passes."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import lightning.pytorch as pl
import torch
from torch._dynamo.utils import counters

from benchmarks.cases import Case, Measured
from benchmarks.report import Section, Target
from benchmarks.timing import StepTimer
from benchmarks.turns import WARM_UP
from mi_crow_lightning import ActivationStatistics, HookCallback
from tests.models import trainer

WHAT = "compiled model"


class Counted(pl.Callback):
    """A callback that counts the seconds, graphs and graph breaks of each batch."""

    def __init__(self, device: torch.device) -> None:
        self.batches: list[tuple[float, int, int]] = []
        self._timer = StepTimer(device)

    def total(self, column: int) -> float:
        return sum(batch[column] for batch in self.batches)

    def seconds(self) -> float:
        return statistics.median(seconds for seconds, *_ in self.batches[WARM_UP:])

    def on_validation_batch_start(self, *event: Any) -> None:
        counters.clear()
        self._timer.start()

    def on_validation_batch_end(self, *event: Any) -> None:
        seconds = self._timer.stop().wall
        self.batches.append((seconds, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))


def compiled(case: Case, rounds: int) -> Section:
    """Compare forward passes of two runs, each compiled from scratch; on a CPU without a backend, only counting."""
    watch = HookCallback(ActivationStatistics("block:*"))
    backend = "eager" if case.on_cpu else "inductor"
    watched = forward_passes(case, rounds, backend, watch)
    if not watch.history():
        raise RuntimeError("the compiled model ran without the hooks: nothing was read")
    bare = forward_passes(case, rounds, backend)
    targets = [
        Target(f"{WHAT}: graph breaks", watched.total(2) - bare.total(2), 0),
        Target(f"{WHAT}: compilations more than bare", watched.total(1) - bare.total(1), 1),
    ]
    if not case.on_cpu:
        ratio = watched.seconds() / bare.seconds()
        targets.append(Target(f"{WHAT}: forward pass; {case.name}", ratio, 1.03, "ratio", "two runs, not in turns"))
    return Section("Compiled", targets=targets)


def forward_passes(case: Case, rounds: int, backend: str, *callbacks: pl.Callback) -> Counted:
    """Run forward passes of a copy of the model, compiled from scratch."""
    model: Any = copy.deepcopy(case.make())
    torch._dynamo.reset()
    model.compile(backend=backend)
    counted, batch = Counted(case.device), case.data(model.config.vocab_size)
    loader: Any = torch.utils.data.DataLoader([batch] * (rounds + WARM_UP), batch_size=None)
    runner = trainer(*callbacks, counted, **case.trainer_options())
    runner.validate(Measured(model).eval(), loader, verbose=False)
    return counted
