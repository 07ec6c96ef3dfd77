"""A site inside a graph of ``torch.compile``: traced with the model, and switched by a Python bool.

torch looks for hooks when it compiles, so the handle stays on the layer for the whole run. Values that change from
batch to batch reach the hook as tensors; otherwise every batch would be compiled again. No error is caught: a hook's
error shows when the graph is made. If the layer runs outside a graph after all, this is a site like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mi_crow_lightning.hooks.passes.handles import NO_KEYWORDS
from mi_crow_lightning.hooks.registry.sites import Site, Ways
from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["TracedSite"]


class TracedSite(Site):
    """One hook on one layer that runs inside a compiled graph; the arguments are those of `Site`."""

    is_traced = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._on = False
        # Written in the graph but never read there: reading it would add a condition to compile for.
        self._ran_in: Stage | None = None

    @property
    def on(self) -> bool:
        """Whether the hook runs when the layer does."""
        return self._on

    def ran_in(self, stage: Stage) -> bool:
        """Return whether the hook was called here in a stage, the running batch included."""
        return self._ran_in is stage or super().ran_in(stage)

    def hold(self) -> None:
        """Put the hook on the layer, for the whole run."""
        super().switch(True)

    def switch(self, on: bool, ways: Ways | None = None) -> None:
        """Set whether the hook runs with its layer; the handle stays."""
        if self._ran_in is not None:
            self.fired.add(self._ran_in)
            self._ran_in = None
        self._on = on

    def remove(self) -> None:
        """Take the hook off the layer; doing so twice is harmless."""
        self._on = False
        super().remove()

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KEYWORDS, output: Any = None
    ) -> Any:
        if not self._on:
            return None
        if not torch.compiler.is_compiling():
            return super().__call__(module, args, kwargs, output)
        batch = self._shared.traced.running
        self._ran_in = batch.stage
        return self._in_graph(module, args, kwargs, output, batch)
