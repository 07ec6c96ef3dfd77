"""Rows with vectors, layers and strengths of their own, in turns with one vector on the same blocks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.report import Section, Target
from benchmarks.timing import StepTimer
from mi_crow_lightning.hooks import Layers, SteeringController

ROWS, TOKENS, BLOCKS, WIDTH = 64, 16, 8, 128
ONE = "one vector at every block"


def steering_by_row(device: torch.device, pairs: int) -> Section:
    """Measure whole forward passes of a tiny Llama, each way to steer beside one vector in the same turn."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)).eval().to(device)
    vectors, strengths = torch.randn(ROWS, WIDTH), torch.linspace(-2, 2, ROWS)
    table = {f"row {row}": vector for row, vector in enumerate(vectors)}
    blocks = [row % BLOCKS for row in range(ROWS)]
    batch = {
        "input_ids": torch.randint(3, 1000, (ROWS, TOKENS), device=device),
        "vector": vectors.to(device),
        "strength": strengths.to(device),
    }
    by_row = dict(vector="batch", strength="batch")
    ways: dict[str, Callable[[], Any]] = {
        ONE: _pass(model, batch, SteeringController(None, vectors[0], 2.0)),
        "64 vectors and strengths, spread over the blocks": _pass(
            model, {**batch, "layers": blocks}, SteeringController(None, layers="batch", **by_row)
        ),
        "64 of a table and strengths, spread over the blocks": _pass(
            model,
            {**batch, "layers": blocks, "vector": list(table)},
            SteeringController(None, layers="batch", vectors=table, **by_row),
        ),
        "64 vectors and strengths at every block": _pass(model, batch, SteeringController(None, **by_row)),
    }
    took = _in_turns(ways, pairs, device)
    lines, targets = [], []
    for name, seconds in took.items():
        ratios = [own / one for own, one in zip(seconds, took[ONE], strict=True)]
        ratio = statistics.median(ratios)
        lines.append(
            {
                "": name,
                "pass, ms": f"{statistics.median(seconds) * 1000:.2f}",
                "over one vector (spread)": f"{ratio:.3f} ({min(ratios):.2f}-{max(ratios):.2f})",
            }
        )
        if name != ONE:
            limit = 1.10 if device.type == "cpu" else 1.05
            targets.append(Target(f"{name}, over {ONE}", ratio, limit, "ratio"))
    note = f"Whole passes of a Llama of {BLOCKS} blocks, width {WIDTH}, {ROWS} x {TOKENS} tokens; {pairs} turns."
    return Section("Vectors, layers and strengths by row", note, lines, targets)


def _pass(model: nn.Module, batch: dict[str, Any], steer: SteeringController) -> Callable[[], Any]:
    """Return a function that attaches a controller, and from it one that runs a pass, and one that detaches it."""

    def attach() -> tuple[Callable[[], Tensor], Callable[[], None]]:
        layers = Layers(model)
        layers.register_hook("block:*", steer)
        layers.begin_batch(None, batch)

        def call() -> Tensor:
            with torch.no_grad():
                return model(input_ids=batch["input_ids"]).logits

        return call, layers.unregister_all_hooks

    return attach


def _in_turns(ways: dict[str, Callable[[], Any]], pairs: int, device: torch.device) -> dict[str, list[float]]:
    """Return the wall seconds of each way in each turn; a pass warms each up, and odd turns go the other way round."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    timer = StepTimer(device)
    for turn in range(pairs + 2):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            call, detach = ways[name]()
            call()
            timer.start()
            for _ in range(3):
                call()
            seconds = timer.stop().wall / 3
            detach()
            if turn > 1:
                took[name].append(seconds)
    return took
