"""Host time a site: what torch calls at each layer, over a plain torch hook, on blocks that compute almost nothing.

On a GPU this is what small models pay, where launching takes longer than computing.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Section, Target
from mi_crow_lightning.hooks import Controller, Detector, Layers, SteeringController, Tokens

BLOCKS, WIDTH, CALLS = 200, 16, 5


class Add(nn.Module):
    """A block that returns ``x + 0``."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0


class Stack(nn.Module):
    """Blocks behind the call of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Add() for _ in range(BLOCKS))

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        x = inputs_embeds
        for block in self.blocks:
            x = block(x)
        return x


class Nothing(Detector):
    """A detector that does nothing."""

    def observe(self, x: Tensor, ctx: Any) -> None:
        pass


class Mask(Detector):
    """A detector that asks which tokens are real."""

    tokens = Tokens("all")

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.tokens.mask(x, ctx)


def sites(device: torch.device, rounds: int) -> Section:
    """Processor time of each way to stand at 200 blocks, in turns, over that of a plain torch hook."""
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(2, 8, WIDTH, device=device)
    mask = (torch.arange(8, device=device) >= torch.tensor([[0], [3]], device=device)).long()
    vector, wide = torch.randn(WIDTH), (mask != 0)[..., None]
    there = vector.to(device)
    ways: dict[str, Callable[[Stack], Callable[[], Any]]] = {
        "bare": lambda model: lambda: None,
        "plain torch hook": _plain(lambda module, args, output: None),
        "plain hook with an add and torch.where": _plain(
            lambda module, args, output: torch.where(wide, output + there, output)
        ),
        "detector that does nothing": _ours(Nothing),
        "detector with the token mask": _ours(Mask),
        "SteeringController": _ours(lambda: SteeringController(None, vector, strength=2.0)),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, attach in ways.items():
            detach = attach(model)
            took[name].append(_processor_time(model, x, mask))
            detach()
    bare = statistics.median(took["bare"])
    cost = {name: statistics.median(seconds) - bare for name, seconds in took.items()}
    plain = cost["plain torch hook"]
    limits = {"detector that does nothing": 3, "detector with the token mask": 4, "SteeringController": 8}
    lines = [
        {"": name, "us a site": f"{seconds * 1e6:.2f}", "over a plain hook": f"{seconds / plain:.2f}"}
        for name, seconds in cost.items()
    ]
    targets = [
        Target(f"host time a site, {name}", cost[name] / plain, limit, "ratio") for name, limit in limits.items()
    ]
    note = f"{BLOCKS} blocks that return `x + 0`, width {WIDTH}; processor time, medians of {rounds} turns."
    return Section("Host time a site", note, lines, targets)


def _plain(hook: Callable[..., Any]) -> Callable[[Stack], Callable[[], Any]]:
    def attach(model: Stack) -> Callable[[], Any]:
        handles = [block.register_forward_hook(hook) for block in model.blocks]
        return lambda: [handle.remove() for handle in handles]

    return attach


def _ours(make: Callable[[], Detector | Controller]) -> Callable[[Stack], Callable[[], Any]]:
    def attach(model: Stack) -> Callable[[], Any]:
        layers = Layers(model, allow_stacking=True)
        layers.register_hook("blocks.*", make())
        return layers.unregister_all_hooks

    return attach


def _processor_time(model: Stack, x: Tensor, mask: Tensor) -> float:
    """Seconds of the processor for one pass, by block, after two that warm up."""
    for _ in range(2):
        model(x, attention_mask=mask)
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(CALLS):
            model(x, attention_mask=mask)
        return (time.process_time() - start) / CALLS / BLOCKS
    finally:
        gc.enable()
