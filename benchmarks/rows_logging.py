"""A log step: its traffic between ranks and to the host, and the cost of its event."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torchmetrics import MeanMetric, MetricCollection

from benchmarks import logging_cost
from benchmarks.copies import counted
from benchmarks.report import Section, Target
from mi_crow_lightning.hooks import ActivationStatistics, Layers

LAYERS = (10, 100)
FIRST, LATER = "first reading", "each later reading"


def moved() -> Section:
    """Count the collectives and copies of a log step on two ranks (two processes, gloo)."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(folder,), nprocs=2)
        found: dict[str, dict[int, tuple[int, int]]] = torch.load(f"{folder}/0.pt", weights_only=True)
    lines = [
        {
            "": name,
            **{f"collectives, {layers} layers": str(counts[layers][0]) for layers in LAYERS},
            **{f"copies to the host, {layers} layers": str(counts[layers][1]) for layers in LAYERS},
        }
        for name, counts in found.items()
    ]
    return Section("What a log step moves", "Two processes on the CPU, gloo.", lines, list(_targets(found)))


def _targets(found: dict[str, dict[int, tuple[int, int]]]) -> Iterator[Target]:
    layers = max(LAYERS)
    for name in (FIRST, LATER):
        collectives, copies = found[name][layers]
        yield Target(f"log step with {layers} layers on 2 ranks, {name}: collectives", collectives, 2)
        yield Target(f"log step with {layers} layers on 2 ranks, {name}: copies to the host", copies, 1)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for layers in LAYERS:
        for name, (prepare, read) in _readers(layers).items():
            prepare()
            found.setdefault(name, {})[layers] = counted(read)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _readers(layers: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return, by name, a function to call before a reading, and the reading."""
    model = nn.Sequential(*[nn.Identity() for _ in range(layers)])
    detector = ActivationStatistics("block:*")
    Layers(model).register_hook(None, detector)

    def reading() -> None:
        assert detector.readings()

    def a_pass() -> None:
        detector.reset()
        model(torch.ones(2, 3))

    metrics = MetricCollection({str(i): MeanMetric() for i in range(layers)}, compute_groups=False)
    for value in metrics.values():
        value.update(torch.ones(3))
    return {
        FIRST: (a_pass, reading),
        LATER: (a_pass, reading),
        "one torchmetrics MeanMetric a layer": (
            lambda: None,
            lambda: [value.item() for value in metrics.compute().values()],
        ),
    }


def event(steps: int) -> Section:
    """Measure the cost of a step's readings in an event file."""
    lines: dict[str, dict[str, str]] = {}
    found = logging_cost.rows(steps)
    for row in found:
        lines.setdefault(row["row"], {"": row["row"]})[row["unit"]] = f"{row['value']:g}"
    targets = [
        Target(f"event file, {row['row']}", row["value"], 2.0, "ms")
        for row in found
        if row["row"].startswith("100 layers x 8 statistics: scalars=") and row["unit"].startswith("ms")
    ]
    note = "CPU time, with that of the thread that writes the file."
    return Section("A logged step in an event file", note, list(lines.values()), targets)
