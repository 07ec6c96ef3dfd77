"""Putting a hook on a model takes time in proportion to its blocks: ratios of CPU time, with generous bounds."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from torch import nn

from mi_crow_lightning import ActivationStatistics, ScaleController
from mi_crow_lightning.hooks import Layers


def cpu_time(work: Callable[[], None], repeats: int = 3) -> float:
    """The least CPU time of a few repeats."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def stack(blocks: int) -> nn.Module:
    made = [nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)]) for _ in range(blocks)]
    return nn.ModuleDict({"layers": nn.ModuleList(made)})


@pytest.mark.parametrize(
    "signature", ["block:*", "block:*.1", "layers.block:*.[1-2]", "layers.*.1", ["block:*", "type:Linear"]]
)
def test_registration_is_about_linear_in_the_blocks(signature: str | list[str]) -> None:
    def register(net: nn.Module) -> None:
        layers = Layers(net)
        layers.register_hook(signature, ActivationStatistics())
        layers.unregister_all_hooks()

    small, large = stack(60), stack(8 * 60)
    assert cpu_time(lambda: register(large)) < 16 * cpu_time(lambda: register(small))  # linear: 8, quadratic: 64


def test_many_hooks_on_one_model() -> None:
    net = stack(60)

    def register(count: int) -> None:
        layers = Layers(net, allow_stacking=True)
        for _ in range(count):
            layers.register_hook("layers.5", ScaleController(factor=2, layer_signature=None))
        layers.unregister_all_hooks()

    assert cpu_time(lambda: register(80)) < 16 * cpu_time(lambda: register(10))
