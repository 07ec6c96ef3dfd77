"""A plugin for pytest that puts a HookCallback into every run of every Trainer, to show that nobody notices.

``pytest -p tests.injected --inject both --inject-log with.jsonl SUITE``, and once more with ``--inject none`` and
another file: the two files are equal if each run of each test left the same weights, bit for bit. Any suite will do,
also that of Lightning. In a test, `injected` does the same for a block.

The detectors keep statistics of all layers in every batch; the controller returns a copy of what it is given.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, Schedule
from mi_crow_lightning.addressing.module_tree import ModuleTree, can_be_called
from tests.models import assert_same_handles, handles

MODES = ("none", "detectors", "controllers", "both")


def hooks_for(module: nn.Module, mode: str) -> HookCallback | None:
    """A callback for all layers of a module; ``None`` if it has no layers, or the mode is "none"."""
    tree = ModuleTree(module)
    has_layers = any(can_be_called(tree.modules[name]) for name in tree.names)
    if mode == "none" or not has_layers:
        return None
    everywhere: dict[str, Any] = {"layer_signature": "*", "schedule": Schedule()}
    detectors = [ActivationStatistics(**everywhere, name="injected")]
    controllers = [FunctionController(function=torch.clone, may_skip=True, hook_id="injected", **everywhere)]
    return HookCallback(
        detectors if mode != "controllers" else None, controllers if mode != "detectors" else None, name="injected"
    )


def weights_of(module: nn.Module) -> str:
    """A digest of all parameters and buffers, by name and bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def injected(mode: str) -> Iterator[list[str]]:
    """Inject into all runs within the block; gives the weights after each, and asserts that no handle stayed."""
    left: list[str] = []
    original = pl.Trainer._run

    def run(trainer: pl.Trainer, model: pl.LightningModule, *args: Any, **kwargs: Any) -> Any:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callback, before = hooks_for(model, mode), handles(model)
        callbacks[:0] = [callback] if callback is not None else []
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*(injected|hooked layers|readings every)")
                warnings.filterwarnings(
                    "ignore", "(?s).*(ActivationStatistics|FunctionController|the attention mask|look padded)"
                )
                return original(trainer, model, *args, **kwargs)
        finally:
            if callback is not None:
                callbacks.remove(callback)
            assert_same_handles(before, model)
            left.append(weights_of(model))

    pl.Trainer._run = run  # type: ignore[method-assign]
    try:
        yield left
    finally:
        pl.Trainer._run = original  # type: ignore[method-assign]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("injected", "a HookCallback in every Trainer")
    group.addoption("--inject", choices=MODES, default="both", help="the hooks that are injected")
    group.addoption("--inject-log", type=Path, help="the file for the weights that each run of each test left")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with injected(item.config.getoption("--inject")) as left:
        try:
            return (yield)
        finally:
            log: Path | None = item.config.getoption("--inject-log")
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"test": item.nodeid, "weights": left}) + "\n")
