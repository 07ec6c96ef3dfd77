"""Small activations, where calls cost more than arithmetic: the same six numbers as by `.item()`, and a tiny GPT-2."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.report import Section, Target
from benchmarks.rivals import take_six
from benchmarks.timing import seconds_of
from mi_crow_lightning import ActivationStatistics
from mi_crow_lightning.hooks import Layers

SHAPE = (4, 64, 576)
# The norm is the rms times the root of the number of elements.
SIX = ("mean", "std", "rms", "min", "max", "zero_share")
PASSES = 20


def six_numbers(device: torch.device, rounds: int, quick: bool) -> Section:
    """Hooks that take the same six numbers of one activation, with one thread and with two."""
    x = torch.randn((2, 4, 8) if quick else SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    before, lines, targets = torch.get_num_threads(), [], []
    for threads in (1,) if quick or device.type == "cuda" else (1, 2):
        torch.set_num_threads(threads)
        took = seconds_of(
            {
                "six numbers by .item()": _hooked(x, lambda block: block.register_forward_hook(_naive)),
                "six numbers, a detector": _watched(x, read=False),
                "six numbers, a detector, read each time": _watched(x, read=True),
                "14 statistics and histogram": _watched(x, read=False, everything=True),
            },
            20 * rounds,
            device,
        )
        naive = took["six numbers by .item()"]
        lines += [
            {"": f"{name}; threads: {threads}", "us": f"{seconds * 1e6:.0f}", "over .item()": f"{seconds / naive:.2f}"}
            for name, seconds in took.items()
        ]
        what = f"the same six numbers of one activation, over six .item(), threads: {threads}"
        targets.append(Target(what, took["six numbers, a detector"] / naive, _limit(device), "ratio"))
    torch.set_num_threads(before)
    note = (
        f"A block that returns its input, {tuple(x.shape)} float32, with a hook on it; medians of {20 * rounds} calls."
    )
    return Section("The same six numbers", note, lines, targets)


def _limit(device: torch.device) -> float:
    return 0.5 if device.type == "cuda" else 0.8


def _naive(module: nn.Module, args: Any, output: Tensor) -> None:
    take_six(output)


def _hooked(x: Tensor, attach: Callable[[nn.Module], Any]) -> Callable[[], Any]:
    model = nn.Sequential(nn.Identity())
    attach(model[0])
    return lambda: model(x)


def _watched(x: Tensor, read: bool, everything: bool = False) -> Callable[[], Any]:
    chosen = {} if everything else {"statistics": SIX, "histogram": False}
    model, detector = nn.Sequential(nn.Identity()), ActivationStatistics(**chosen)
    layers = Layers(model)
    layers.register_hook("0", detector)

    def call() -> None:
        model(x)
        if read:
            detector.readings()
            detector.reset()

    return call


def tiny_gpt2(device: torch.device, rounds: int, quick: bool) -> Section:
    """What a site of a GPT-2 of tiny width costs, with all statistics and with six, and by ``.item()``."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=2 if quick else 12, n_head=2, vocab_size=100, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).to(device).eval()
    ids = torch.randint(100, (4, 16), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    ways: dict[str, Callable[[nn.Module], Callable[[], Any]]] = {
        "bare": lambda model: lambda: None,
        "six numbers by .item()": _items,
        "six numbers, a detector": lambda model: _detector(model, statistics=SIX, histogram=False),
        "14 statistics and histogram": _detector,
    }
    before, lines, targets = torch.get_num_threads(), [], []
    for threads in (1,) if quick or device.type == "cuda" else (1, 2):
        torch.set_num_threads(threads)
        cost = _cost_of_a_site(ways, model, batch, rounds)
        lines += [
            {"": f"{name}; threads: {threads}", "us a site": f"{seconds * 1e6:.0f}"} for name, seconds in cost.items()
        ]
        everything = cost["14 statistics and histogram"] * 1e6
        limit = 100 if device.type == "cpu" else None
        what = f"a site of GPT-2 of tiny width, 13 statistics and histogram, threads: {threads}"
        targets.append(Target(what, everything, limit, "us"))
    torch.set_num_threads(before)
    note = (
        f"{config.n_layer} blocks of width {config.n_embd}, 4 x 16 tokens; time of the calling thread, "
        f"medians of {PASSES * rounds} passes, in turns."
    )
    return Section("A tiny GPT-2", note, lines, targets)


def _cost_of_a_site(
    ways: dict[str, Callable[[nn.Module], Callable[[], Any]]], model: nn.Module, batch: dict[str, Any], rounds: int
) -> dict[str, float]:
    """Return the seconds that each way adds to a block, over the bare model."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, attach in ways.items():
            detach = attach(model)
            took[name] += _processor_times(model, batch)
            detach()
    blocks, bare = len(model.transformer.h), statistics.median(took["bare"])
    return {name: (statistics.median(seconds) - bare) / blocks for name, seconds in took.items() if name != "bare"}


def _items(model: nn.Module) -> Callable[[], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        take_six(output if isinstance(output, Tensor) else output[0])

    handles = [block.register_forward_hook(hook) for block in model.transformer.h]
    return lambda: [handle.remove() for handle in handles]


def _detector(model: nn.Module, **options: Any) -> Callable[[], Any]:
    layers = Layers(model, allow_stacking=True)
    layers.register_hook("block:*", ActivationStatistics(**options))
    return layers.unregister_all_hooks


@torch.no_grad()
def _processor_times(model: nn.Module, batch: dict[str, Any]) -> list[float]:
    """Return the seconds of the processor for each of some passes, after two that warm up.

    They are those of this thread, in which hooks run. torch's other threads wait actively for the next operation: the
    time of the whole process would count the hooks once more for each of them.
    """
    for _ in range(2):
        model(**batch)
    gc.disable()
    try:
        seconds = []
        for _ in range(PASSES):
            start = time.thread_time()
            model(**batch)
            seconds.append(time.thread_time() - start)
        return seconds
    finally:
        gc.enable()
