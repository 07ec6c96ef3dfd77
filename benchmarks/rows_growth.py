"""Costs that must not grow with what came before, and those that may only grow in proportion.

Each is measured at four sizes, each twice the last. In proportion is a ratio of 2 per doubling; flat is a ratio of 1.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.report import Section, Target
from mi_crow_lightning import ActivationStatistics, HookCallback, LayerActivationDetector, ScaleController, attached
from mi_crow_lightning.hooks import Layers, Schedule
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.runs.hooked_run import HookedRun
from mi_crow_lightning.runs.names import readable_names

Work = Callable[[], object]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 6), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Block(nn.Module):
    """A block of nine modules, itself included."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(2), Attention(), MLP()

    def forward(self, x: Tensor) -> Tensor:
        return x


def stack(blocks: int) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(blocks)])})


def _registration(signature: str, blocks: int) -> Work:
    net = stack(blocks)

    def work() -> float:
        start = time.process_time()
        layers = Layers(net)
        layers.register_hook(signature, ActivationStatistics())
        took = time.process_time() - start
        layers.unregister_all_hooks()
        return took

    return work


def _many_hooks(count: int) -> Work:
    net = stack(1000)

    def work() -> None:
        hooks = [ScaleController(f"layers.{i}", 2.0, schedule=Schedule()) for i in range(count)]
        HookedRun(net, hooks, None).end()

    return work


def _names(count: int) -> Work:
    return partial(readable_names, [ScaleController(0, 2.0) for _ in range(count)])


def _batch(blocks: int) -> Work:
    run = HookedRun(stack(blocks), [ActivationStatistics("block:*")], None)

    def work() -> float:
        start = time.process_time()
        run.begin_batch(Moment(Stage.TRAIN, logged=True), None)
        took = time.process_time() - start
        run.end_batch()
        return took

    return work


def _keeping_all(passes: int) -> Work:
    """Ten passes after ``passes`` others."""
    net, x = nn.Sequential(*[nn.Identity() for _ in range(16)]), torch.ones(1, 1, 4)
    detector = LayerActivationDetector("*", keep="all")
    held = attached(net, detector)
    held.__enter__()
    with torch.no_grad():
        for _ in range(passes):
            net(x)

    def work() -> None:
        with torch.no_grad():
            for _ in range(10):
                net(x)

    return work


def _history(steps: int) -> Work:
    """Logged steps of 300 numbers, after ``steps`` others."""
    watch = HookCallback()
    history = watch._log._history
    readings = [(f"mean/h.{i}", Reading(f"h.{i}", "mean", 1.0)) for i in range(300)]
    for step in range(steps):
        history.add("train", step, readings)
    return lambda: [history.add("train", steps + i, readings) for i in range(20)]


ROWS: dict[str, tuple[Callable[[int], Work], int, float, float | None]] = {
    "putting a hook on block:*, of n blocks of 9 modules": (partial(_registration, "block:*"), 1000, 2, 50),
    "putting a hook on block:*.mlp, of n blocks of 9 modules": (partial(_registration, "block:*.mlp"), 1000, 2, 100),
    "starting a run with n hooks, on 1,000 blocks of 9 modules": (_many_hooks, 200, 2, 500),
    "naming n hooks": (_names, 800, 2, None),
    "beginning a batch with n hooked layers": (_batch, 1000, 2, 3),
    'ten passes after n others, keep="all", 16 layers': (_keeping_all, 800, 1, None),
    "20 logged steps after n others, in history()": (_history, 800, 1, None),
}
"""What is measured: how its work is prepared for a size, the largest size, the ratio per doubling, the bound in ms."""


def growth(quick: bool) -> Section:
    """Measure processor time at each size."""
    lines, targets = [], []
    for name, (prepare, largest, wanted, bound) in ROWS.items():
        sizes = [max(1, largest // 2**halvings // (20 if quick else 1)) for halvings in (3, 2, 1, 0)]
        times = [_least(prepare(size), 1 if quick else 9) for size in sizes]
        ratio = statistics.geometric_mean([after / before for before, after in itertools.pairwise(times)])
        lines.append(
            {
                "": name,
                "n": ", ".join(map(str, sizes)),
                "ms": ", ".join(f"{took * 1000:.3g}" for took in times),
                "ratio per doubling": f"{ratio:.2f}",
                "wanted": f"{wanted:g}",
            }
        )
        if bound is not None:
            targets.append(Target(f"{name}; n = {sizes[-1]}", times[-1] * 1000, bound, "ms"))
        targets.append(Target(f"growth per doubling: {name}", ratio, 1.25 * wanted, "ratio"))
    note = "Processor time, the least of nine, without garbage collection. Taking hooks off is not counted."
    return Section("What grows, and what does not", note, lines, targets)


def _least(work: Work, repeats: int) -> float:
    times = []
    gc.collect()
    gc.disable()  # as timeit does
    try:
        for _ in range(repeats):
            start = time.process_time()
            own = work()
            took = time.process_time() - start
            times.append(own if isinstance(own, float) else took)
    finally:
        gc.enable()
    return min(times)
