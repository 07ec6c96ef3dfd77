"""What `torch.compile` compiles for the device: the numbers of the run that is not compiled, in graphs of one piece."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from tests.callback.compiled.cases import QUIET, Counted, assert_same_numbers, in_place, small_llama, small_mlp
from tests.callback.runs import run
from tests.fresh_graphs import fresh_graphs  # noqa: F401
from tests.models import WIDTH, token_data, trainer, vector_data

pytestmark = QUIET
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("gcc")


def backend_of(device: torch.device) -> str:
    return "inductor" if device.type == "cuda" and COMPILER else "eager"  # the others take long on a CPU


NAMES = ["mean", "std", "rms", "abs_max", "dead_share"]
CASES = {  # stage, module, data, the layer
    "llama, validate": ("validate", small_llama, token_data, "block:1"),
    "mlp, fit": ("fit", small_mlp, vector_data, "model.3"),
}


def ran(kind: str, device: torch.device, options: dict[str, Any], *, compiled: bool, hooked: bool) -> Any:
    """The callback, the graphs with the breaks between them, and the weights, of a run."""
    stage, make, data, layer = CASES[kind]
    torch._dynamo.reset()
    counted, module = Counted(backend_of(device)), make()
    watch = HookCallback(
        ActivationStatistics(layer, statistics=NAMES, histogram=False, schedule=Schedule()),
        SteeringController(layer, torch.ones(WIDTH), 0.1, schedule=Schedule(stages=["train", "validate"])),
    )
    if compiled:
        in_place(module, counted.backend)
    changes = dict(limit_val_batches=0) if stage == "fit" else {}
    run(stage, trainer(*[watch] * hooked, **options, **changes), module, data(8))
    return watch, (counted.graphs, counted.breaks), list(module.parameters())


@pytest.mark.parametrize("kind", CASES)
def test_a_run_watched_and_steered(device: torch.device, on_device: dict[str, Any], kind: str) -> None:
    expected, _, weights = ran(kind, device, on_device, compiled=False, hooked=True)
    found, (graphs, breaks), compiled = ran(kind, device, on_device, compiled=True, hooked=True)
    assert_same_numbers(found, expected)
    near = [torch.isclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(compiled, weights, strict=True)]
    # Adam makes a whole step of a gradient that is all rounding.
    assert sum(int(one.sum()) for one in near) >= 0.99 * sum(one.numel() for one in near)
    _, (bare_graphs, bare_breaks), _ = ran(kind, device, on_device, compiled=True, hooked=False)
    assert breaks == bare_breaks == 0
    assert 0 < bare_graphs <= graphs <= bare_graphs + 2
