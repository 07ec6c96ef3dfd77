"""What ``repr`` says of hooks and of a callback: on one line, short, whatever their arguments are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    ContrastDetector,
    Controller,
    Detector,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    PatchController,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
    Tokens,
)
from tests.constructors import Hostile

V = torch.tensor([3.0, 4.0])


def when(x: Any, ctx: Any) -> bool:
    return True


class Unshowable:
    def __call__(self, ctx: Any) -> float:
        return 1.0

    __repr__ = Hostile.__repr__


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (SteeringController("0", V), "SteeringController(layer_signature='0', vector=<width 2, norm 5>, strength=1.0)"),
        (
            SteeringController("block:2", V, 4.0, tokens="generated", hook_id="joy", schedule=Schedule("predict")),
            "SteeringController(layer_signature='block:2', id='joy', vector=<width 2, norm 5>, strength=4.0, "
            "tokens='generated', schedule=Schedule(stages=['predict']))",
        ),
        (
            SteeringController("block:*", {0: V, "h.1": 2 * V}, {0: 1.0, 1: -2.5}),
            "SteeringController(layer_signature='block:*', vector=<2 layers, width 2, norm 5 to 10>, "
            "strength=<2 layers, -2.5 to 1>)",
        ),
        (
            SteeringController("0", V, torch.tensor([1.0, 2.0]), when=when, preserve_norm=True),
            "SteeringController(layer_signature='0', vector=<width 2, norm 5>, strength=<2 samples, 1 to 2>, "
            "when=<when>, preserve_norm=True)",
        ),
        (
            AblationController("0", V, strength="batch", tokens=Tokens(positions=[1])),
            "AblationController(layer_signature='0', vector=<width 2, norm 1>, strength='batch', "
            "tokens=Tokens(positions=[1]))",
        ),
        (
            ClampController("0", V, low=-1, high=2.5, strength=lambda ctx: 1.0),
            "ClampController(layer_signature='0', low=-1, high=2.5, vector=<width 2, norm 1>, strength=<lambda>)",
        ),
        (ScaleController("0", 0.5), "ScaleController(layer_signature='0', factor=0.5, strength=1.0)"),
        (
            FunctionController("0", torch.neg),
            "FunctionController(layer_signature='0', function=<neg>, strength=1.0)",
        ),
        (
            PatchController("0", {0: torch.ones(2, 3, 4), 1: torch.ones(4)}),
            "PatchController(layer_signature='0', source=<2 layers, shape (2, 3, 4) and (4,)>, strength=1.0)",
        ),
        (ActivationStatistics("block:*"), "ActivationStatistics(layer_signature='block:*')"),
        (
            ActivationStatistics("0", statistics=["rms"], name="mine", tokens="last", before_edits=True),
            "ActivationStatistics(layer_signature='0', statistics=['rms'], tokens='last', name='mine', "
            "before_edits=True)",
        ),
        (
            ProjectionDetector("0", vectors={"joy": V, "calm": V}),
            "ProjectionDetector(layer_signature='0', vectors=['joy', 'calm'])",
        ),
        (
            ContrastDetector("0", tokens="last"),
            "ContrastDetector(layer_signature='0', method='mean_difference', tokens='last')",
        ),
        (LayerActivationDetector("0", channels=1), "LayerActivationDetector(layer_signature='0', channels=1)"),
        (type("Mine", (Controller,), {})("0"), "Mine(layer_signature='0')"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_repr_says(hook: Any, expected: str) -> None:
    assert repr(hook) == expected


@pytest.mark.parametrize(
    "hook",
    [
        SteeringController("0", V, Unshowable()),
        SteeringController("0", V, when=Unshowable()),
        FunctionController("0", Unshowable()),
        SteeringController("0", {f"h.{i}": V for i in range(1000)}, {i: float(i) for i in range(1000)}),
        SteeringController("0", V, tokens=Tokens(positions=range(5000))),
        SteeringController(["h." + "x" * 900] * 500, nn.Parameter(V.clone())),
        ActivationStatistics("0", schedule=Schedule(epochs=range(10**9)) & Schedule(batches=list(range(5000)))),
    ],
    ids=["strength", "condition", "function", "1000 layers", "5000 tokens", "long names", "long schedule"],
)
def test_it_is_one_short_line_whatever_the_arguments_are(hook: Any) -> None:
    assert "\n" not in repr(hook) and len(repr(hook)) < 700


class HalfMade(Detector):
    def __init__(self) -> None:
        self.shown = repr(self)
        super().__init__("0")


def test_a_hook_that_is_half_made_can_be_shown() -> None:
    assert HalfMade().shown == "HalfMade(layer_signature=None, ... (AttributeError))"


def test_a_callback_with_many_hooks_stays_readable() -> None:
    few = HookCallback([ActivationStatistics("0")], [ScaleController("1", 2.0)])
    assert repr(few) == f"HookCallback(detectors=[{few.detectors[0]!r}], controllers=[{few.controllers[0]!r}])"
    many = HookCallback([ActivationStatistics(f"block:{i}", name=f"block {i}") for i in range(40)])
    assert repr(many) == (
        "HookCallback(detectors=[ActivationStatistics(layer_signature='block:0', name='block 0'), "
        "ActivationStatistics(layer_signature='block:1', name='block 1'), "
        "ActivationStatistics(layer_signature='block:2', name='block 2'), ... 37 more], controllers=[])"
    )


def test_the_strength_that_is_set_later_is_shown() -> None:
    hook = SteeringController("0", V)
    hook.strength = -2
    assert "strength=-2.0" in repr(hook)
