"""The face of a hook: what tab completion shows, and what mi-crow calls it."""

from __future__ import annotations

import pytest
import torch

from mi_crow_lightning.hooks import (
    ActivationStatistics,
    Hook,
    LayerActivationDetector,
    ProjectionDetector,
    SteeringController,
)
from mi_crow_lightning.hooks.hook import _FOR_SUBCLASSES

HOOKS = [
    ActivationStatistics("block:0"),
    LayerActivationDetector("block:0"),
    ProjectionDetector("block:0", torch.ones(2)),
    SteeringController("block:0", torch.ones(2)),
]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: type(hook).__name__)
def test_tab_completion_shows_what_a_user_needs(hook: Hook) -> None:
    shown = {name for name in dir(hook) if not name.startswith("_")}
    assert {"id", "layer_signature", "enable", "disable", "enabled", "schedule", "error", "context"} <= shown
    assert len(shown) <= 26, sorted(shown)


def test_what_tab_completion_leaves_out_is_there() -> None:
    names = {name for hook in HOOKS for cls in type(hook).__mro__ for name in vars(cls)}
    attributes = {name for hook in HOOKS for name in vars(hook)}
    assert names | attributes >= _FOR_SUBCLASSES, "a name that no hook has"


def test_the_context_is_mi_crows_too() -> None:
    hook = HOOKS[0]
    assert hook.context is None and hook._context is None
