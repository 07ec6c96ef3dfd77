"""Each form of the statistics beside the others: does every one of them pay?"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.report import NotRun, Section
from benchmarks.rows_compiled import forward_passes
from benchmarks.timing import seconds_of
from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.metrics import measure
from mi_crow_lightning.metrics.one_pass.in_graph import measure_traced
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.metrics.one_pass.in_torch import measure_in_torch
from mi_crow_lightning.metrics.one_pass.on_cpu import measure_at_hand
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import kernels_run_on
from mi_crow_lightning.metrics.summary import Group
from tests.models import llama

SIZES = {
    "cpu": [((4, 64, 576), torch.float32), ((8, 512, 4096), torch.bfloat16)],
    "cuda": [((4, 1024, 2048), torch.bfloat16), ((8, 2048, 4096), torch.bfloat16)],
    "quick": [((4, 8, 32), torch.float32)],
}


class CalledStatistics(ActivationStatistics):
    """Statistics that a graph calls as an operation, in place of tracing them."""

    traceable = False


def one_activation_by_form(device: torch.device, rounds: int, quick: bool) -> Section:
    """Measure all statistics of one activation by each form that runs on the device."""
    lines = []
    for shape, dtype in SIZES["quick" if quick else device.type]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        took = seconds_of({"torch.var_mean(x)": lambda x=x: torch.var_mean(x)} | dict(_forms(x, quick)), rounds, device)
        base = took["torch.var_mean(x)"]
        lines += [
            {
                "": f"{shape} {str(dtype).removeprefix('torch.')}: {name}",
                "ms": f"{seconds * 1000:.3g}",
                "over torch.var_mean(x)": f"{seconds / base:.3g}",
            }
            for name, seconds in took.items()
        ]
    return Section("One activation by each form", f"All statistics and histogram; medians of {rounds} calls.", lines)


def _forms(x: Tensor, quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    tokens = x.reshape(-1, x.shape[-1])
    if kernels_run_on(x.device):
        yield "Triton", partial(measure, x)
    elif in_numba.suits(tokens, None):
        yield "numba", partial(measure, x)
    if x.is_cpu:
        yield "numpy", partial(_in_chunks, measure_at_hand, tokens)
    yield "eager torch", partial(_in_chunks, measure_in_torch, tokens)
    if _has_compiler(x.device):
        by = "eager" if quick else "inductor"
        yield "compiled from torch", partial(torch.compile(measure_traced, backend=by), tokens, None, Group.ALL)


def _in_chunks(form: Callable[..., Any], tokens: Tensor) -> list[Any]:
    """Measure a chunk at a time, as `measure` does for the forms that are no kernels."""
    step = max(1, (2**18 if tokens.is_cpu else 2**22) // tokens.shape[1])
    return [form(chunk.float(), None, Group.ALL) for chunk in tokens.split(step)]


def compiled_by_form(device: torch.device, rounds: int, quick: bool) -> Section:
    """Compare compiled forward passes: bare, with traced statistics, and with statistics that the graph calls.

    Raises:
        NotRun: torch.compile has no compiler here.
    """
    if not _has_compiler(device):
        raise NotRun("no C++ compiler is installed, which torch.compile needs on a CPU")
    width, inner, heads, blocks = (32, 64, 2, 2) if quick else (576, 1536, 9, 6)
    sizes = dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, vocab_size=1000)
    model = partial(llama, **sizes, num_attention_heads=heads, num_key_value_heads=heads)
    case = Case("a Llama of SmolLM2's width", model, 4, 64, device)
    ways: dict[str, Callable[[], list[HookCallback]]] = {
        "bare": list,
        "traced": lambda: [HookCallback(ActivationStatistics("block:*"))],
        "called": lambda: [HookCallback(CalledStatistics("block:*"))],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if quick else 2):  # each run compiles from scratch: in turns
        for name, callbacks in ways.items():
            seconds[name].append(forward_passes(case, rounds, "eager" if quick else "inductor", *callbacks()).seconds())
    bare = statistics.median(seconds["bare"])
    lines = [
        {
            "": name,
            "pass, ms": f"{statistics.median(runs) * 1000:.4g} ({min(runs) * 1000:.4g}-{max(runs) * 1000:.4g})",
            "over bare": f"{statistics.median(runs) / bare:.3f}",
        }
        for name, runs in seconds.items()
    ]
    note = f"{case.title}, {blocks} blocks; each run's median of {rounds} passes, and the median of the runs."
    return Section("A compiled model, statistics traced and called", note, lines)


def _has_compiler(device: torch.device) -> bool:
    return device.type == "cuda" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))
