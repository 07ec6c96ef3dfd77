"""Small modules, the ways to compile them, and what counts the graphs that come of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from tests.callback.runs import run
from tests.models import WIDTH, Module, llama, mlp, token_data, trainer

# Dynamo looks at .grad of what it guards, and hides the warning only where warnings are no errors.
QUIET = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
INDUCTOR = pytest.param("inductor", marks=pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler"))


class Silent(Module):
    """Does not log: Lightning's ``self.log`` cannot be traced, so a compiled step has none."""

    def log(self, *args: Any, **options: Any) -> None:
        pass


def small_llama(**changes: Any) -> Silent:
    return Silent(llama(num_hidden_layers=2, attention_dropout=0.0, **changes))


class Chain(nn.Sequential):
    """A class of one's own: of torch's containers, `compile()` compiles nothing."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def small_mlp() -> Silent:
    model = Chain(*mlp())
    model[2] = nn.Dropout(0.0)
    return Silent(model)


def three_blocks() -> Silent:
    blocks = [Chain(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
    for block in blocks:
        block.compile(backend="eager")
    return Silent(Chain(*blocks, nn.Linear(8, 5)))


def as_it_is(module: Silent, backend: Any) -> pl.LightningModule:
    return module


def whole(module: Silent, backend: Any) -> pl.LightningModule:
    return torch.compile(module, backend=backend)  # type: ignore[return-value]


def wrapped(module: Silent, backend: Any) -> pl.LightningModule:
    module.model = torch.compile(module.model, backend=backend)  # type: ignore[assignment]
    return module


def in_place(module: Silent, backend: Any) -> pl.LightningModule:
    module.model.compile(backend=backend)
    return module


WAYS = [whole, wrapped, in_place]


class Counted:
    """A backend that counts graphs, and the breaks between them."""

    def __init__(self, backend: str = "eager") -> None:
        self.backend = CompileCounterWithBackend(backend)
        counters.clear()

    @property
    def graphs(self) -> int:
        return self.backend.frame_count

    @property
    def breaks(self) -> int:
        return sum(counters["graph_break"].values())


def fitted(
    way: Callable[[Silent, Any], pl.LightningModule],
    hooks: Callable[[], HookCallback] | None,
    backend: str = "eager",
    **changes: Any,
) -> tuple[HookCallback | None, Counted, list[Tensor]]:
    """A fit with validation inside and a sanity check before; gives the weights too."""
    torch._dynamo.reset()
    counted, module = Counted(backend), small_llama()
    callback = hooks() if hooks is not None else None
    runner = trainer(*([callback] if callback is not None else []), **{"num_sanity_val_steps": 1, **changes})
    run("fit", runner, way(module, counted.backend), token_data(8))
    return callback, counted, [weight.detach().clone() for weight in module.parameters()]


def assert_same_numbers(found: HookCallback, expected: HookCallback) -> None:
    rows = found.history(), expected.history()
    assert len(rows[0]) == len(rows[1]) > 0
    for one, other in zip(*rows, strict=True):
        assert one._replace(value=0.0) == other._replace(value=0.0)
        assert one.value == pytest.approx(other.value, rel=1e-4, abs=1e-5), one
    for one, other in zip(found.effects(), expected.effects(), strict=True):
        ratios = {"mean_ratio": 0.0, "max_ratio": 0.0}
        assert one._replace(**ratios) == other._replace(**ratios)  # the tokens that were changed, and how often
        assert one[5:7] == pytest.approx(other[5:7], rel=1e-4)


def watched_and_steered() -> HookCallback:
    steer = SteeringController("block:1", torch.ones(WIDTH), 0.1, schedule=Schedule(stages=["train", "validate"]))
    watch = ActivationStatistics("block:1", statistics=["mean", "std", "dead_share"])
    return HookCallback(watch, steer, log_every_n_steps=2)
