"""Hooks that write to the model's own tensors are stopped, loudly, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError, WrittenInPlace
from mi_crow_lightning.hooks import Controller, Detector, FunctionController, Hook, Layers
from tests.models import mlp

X = torch.ones(2, 8)


class Writes(Detector):
    def observe(self, x: Tensor, ctx: Any) -> None:
        x.mul_(0)


class WritesAndForgets(Controller):
    def edit(self, x: Tensor, ctx: Any) -> None:
        x.mul_(0)


class WritesItself(Hook):
    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> None:
        output.mul_(0)


class WritesInProcess(Detector):
    def process_activations(self, module: nn.Module, input: Any, output: Any) -> None:
        output.mul_(0)


MODES: dict[str, Callable[[], Any]] = {
    "training": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["raise", "disable", "warn"])
@pytest.mark.parametrize("kind", ["detector", "controller", "function", "hook", "process"])
def test_writing_is_an_error_whatever_the_policy(kind: str, policy: str, mode: str) -> None:
    hooks = {
        "detector": lambda: Writes(on_error=policy),
        "controller": lambda: WritesAndForgets(on_error=policy),
        "hook": lambda: WritesItself(on_error=policy),
        "process": lambda: WritesInProcess(on_error=policy),
        "function": lambda: FunctionController(None, lambda x: x.mul_(3), tokens="all", on_error=policy),
    }
    layers = Layers(mlp())
    layers.register_hook("0", hooks[kind]())
    with MODES[mode](), pytest.raises(HookError, match="wrote to the activation it was given") as caught:
        layers.root(X)
    assert isinstance(caught.value.original_error, WrittenInPlace)


def test_a_copy_may_be_written_to_in_every_mode() -> None:
    class Careful(Controller):
        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            return x.clone().mul_(2)

    model = nn.Sequential(nn.Identity(), nn.Identity())
    Layers(model).register_hook("0", Careful())
    for mode in MODES.values():
        with mode():
            assert torch.equal(model(X), 2 * X)
