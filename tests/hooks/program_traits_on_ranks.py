"""A script: a `TraitMonitor` on two CPU processes, ``python -m tests.hooks.program_traits_on_ranks FOLDER``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from mi_crow_lightning import HookCallback, TraitMonitor
from tests.end_of_ranks import leave_ranks
from tests.models import Module, llama, loader, token_data, trainer

VECTORS = {"joy": torch.arange(32.0) - 9, "calm": torch.arange(32.0).cos()}


def readings(**options: Any) -> tuple[dict[str, list[float]], TraitMonitor, Any]:
    """The readings of a validate and of one on changed weights, each on 16 texts."""
    torch.manual_seed(0)
    monitor, module = TraitMonitor("block:1-2", vectors=VECTORS), Module(llama())
    watch = HookCallback(monitor)
    runner = trainer(watch, **options)
    runner.validate(module, loader(token_data(16)), verbose=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(parameter.abs().mean())
    runner.validate(module, loader(token_data(16)), verbose=False)
    found: dict[str, list[float]] = {}
    for row in watch.history():
        found.setdefault(row.tag, []).append(row.value)
    return found, monitor, runner


def main(folder: str) -> None:
    torch.set_num_threads(1)
    found, monitor, runner = readings(strategy=DDPStrategy(), devices=2)
    state = monitor.state_dict()["baseline"]
    torch.save({"read": found, "baseline": state}, f"{folder}/{runner.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
