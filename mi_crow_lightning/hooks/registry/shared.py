"""The state that all sites of a registry share: the running batch and passes, and the counts of what hooks change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.passes.running_batch import NO_BATCH, RunningBatch
from mi_crow_lightning.hooks.passes.tracker import Passes
from mi_crow_lightning.hooks.registry.traced_batch import TracedBatch

__all__ = ["Shared"]


class Shared:
    """The state that the sites of one registry share.

    Args:
        over: called when a pass is over, with its errors, each with its hook, and its output.
        second: called when a pass has begun that runs beside another thread's, with that thread's name.
        device: the model's device.

    Attributes:
        passes: the running passes of the model.
        running: the running batch.
        traced: the running batch as hooks in a compiled graph see it.
        effects: counts what hooks change; ``None`` to count nothing.
    """

    def __init__(
        self,
        over: Callable[[list[tuple[HookError, Hook]], Any], None],
        second: Callable[[str], None],
        device: torch.device,
    ) -> None:
        self.passes: Passes[Hook] = Passes(over, second)
        self.running: RunningBatch = NO_BATCH
        self.traced = TracedBatch(device)
        self.effects: Effects | None = None
