"""A short way for an activation: few files of the package between torch's call of a handle and its return."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mi_crow_lightning
from mi_crow_lightning.hooks import ActivationStatistics, Detector, Hook, Layers, SteeringController, Tokens
from mi_crow_lightning.hooks.registry.sites import Site
from tests.models import WIDTH, llama

PACKAGE = str(Path(mi_crow_lightning.__file__).parent)
MOST = 10
BATCH = dict(input_ids=torch.arange(3, 11)[None], attention_mask=torch.ones(1, 8, dtype=torch.long))


class Nothing(Detector):
    def observe(self, x: torch.Tensor, ctx: Any) -> None:
        pass


class Asks(Detector):
    def observe(self, x: torch.Tensor, ctx: Any) -> None:
        Tokens("all").mask(x, ctx)


def files_in_a_call(hook: Hook) -> set[str]:
    """The package's files with a call between torch entering the handle and its return, in a second pass."""
    model = llama().eval()
    Layers(model).register_hook("block:1", hook)
    files: set[str] = set()
    inside: list[Any] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            if frame.f_code is Site.__call__.__code__:
                inside.append(frame)
            if inside and frame.f_code.co_filename.startswith(PACKAGE):
                files.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))
        elif event == "return" and inside and frame is inside[-1]:
            inside.pop()

    model(**BATCH)
    sys.setprofile(profile)
    try:
        model(**BATCH)
    finally:
        sys.setprofile(None)
    return files


@pytest.mark.parametrize(
    "hook",
    [
        Nothing(),
        Asks(),
        SteeringController(None, torch.ones(WIDTH), 2.0),
    ],
    ids=["nothing", "mask", "steering"],
)
def test_few_files_lie_between_torch_and_the_hook(hook: Hook) -> None:
    files = files_in_a_call(hook)
    assert "hooks/registry/sites.py" in files
    assert len(files) <= MOST, sorted(files)


def test_statistics_add_only_those_that_measure() -> None:
    files = {file for file in files_in_a_call(ActivationStatistics()) if not file.startswith("metrics/")}
    assert len(files) <= MOST, sorted(files)
