"""Statistics of every attention head, beside those of all heads together: the input of the output projection."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Section, Target
from mi_crow_lightning import ActivationStatistics
from mi_crow_lightning.hooks import Layers

BLOCKS, HEADS, WIDTH, CALLS = 10, 9, 576, 10
SIX = ("mean", "std", "rms", "min", "max", "zero_share")


class Projection(nn.Linear):
    """An output projection that computes nothing."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Attention(nn.Module):
    """An attention of `HEADS` heads that computes nothing."""

    num_heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.o_proj = Projection(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.o_proj(x)
        return y


class Stack(nn.Module):
    """Attention behind the call of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(BLOCKS))

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x)
        return x


def heads(device: torch.device, rounds: int, quick: bool) -> Section:
    """Processor time a layer, in turns."""
    torch.manual_seed(0)
    model, shape = Stack().to(device), (2, 8) if quick else (4, 64)
    x = torch.randn(*shape, WIDTH, device=device)
    mask = torch.ones(shape, dtype=torch.long, device=device)
    whole: dict[str, Any] = {"layer_signature": "layers.*.o_proj", "hook_type": "pre_forward"}
    apart: dict[str, Any] = {"layer_signature": "layers.*.head:*"}
    six: dict[str, Any] = {"statistics": SIX, "histogram": False}
    ways: dict[str, dict[str, Any] | None] = {
        "bare": None,
        "six numbers, heads together": {**whole, **six},
        "six numbers of each head": {**apart, **six},
        "14 statistics and histogram, heads together": whole,
        "14 statistics and histogram of each head": apart,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, options in ways.items():
            layers = Layers(model)
            if options is not None:
                layers.register_hook(None, ActivationStatistics(**options))
            took[name].append(_processor_time(model, x, mask))
            layers.unregister_all_hooks()
    bare = statistics.median(took["bare"])
    cost = {name: statistics.median(seconds) - bare for name, seconds in took.items() if name != "bare"}
    lines = [{"": name, "us a layer": f"{seconds * 1e6:.0f}"} for name, seconds in cost.items()]
    together, each = (cost[f"14 statistics and histogram{of}"] for of in (", heads together", " of each head"))
    limit = 3 if device.type == "cpu" else None
    target = Target("statistics of each head, over those of all heads together", each / together, limit, "ratio")
    note = (
        f"{BLOCKS} layers of {HEADS} heads of width {WIDTH // HEADS} that compute nothing, {shape[0]} x {shape[1]} "
        f"tokens; processor time, medians of {rounds} turns."
    )
    return Section("Heads", note, lines, [target])


def _processor_time(model: nn.Module, x: Tensor, mask: Tensor) -> float:
    """Seconds of the processor for one pass, by layer, after one that warms up."""
    model(x, mask)
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(CALLS):
            model(x, mask)
        return (time.process_time() - start) / CALLS / BLOCKS
    finally:
        gc.enable()
