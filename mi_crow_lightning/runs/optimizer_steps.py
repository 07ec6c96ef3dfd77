"""The optimizer steps of a batch, for the hooks that read weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mi_crow_lightning.hooks.detectors.weight_statistics import WeightStatistics
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers

__all__ = ["OptimizerSteps"]


class OptimizerSteps:
    """The optimizer steps of the running batch: each is followed to its end by a hook of the optimizer.

    Args:
        layers: the registry of the hooks.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._following: dict[torch.optim.Optimizer, RemovableHandle] = {}

    def before(
        self,
        hooks: Iterable[Hook],
        optimizer: Any,
        optimizers: Sequence[Any],
        scale: Callable[[torch.device], Tensor] | None,
        scaled: bool,
    ) -> None:
        """Let the hooks that are due read weights before a step, and follow the step.

        Args:
            hooks: the hooks of the run.
            optimizer: the optimizer that is about to step.
            optimizers: all optimizers of the run.
            scale: see `WeightStatistics.before_step`.
            scaled: see there.
        """
        for hook in self._due(hooks):
            self._layers.call(hook, partial(hook.before_step, optimizer, optimizers, scale, scaled))
            if optimizer not in self._following:
                follow = partial(self._after, hooks)
                self._following[optimizer] = optimizer.register_step_post_hook(follow)

    def _after(self, hooks: Iterable[Hook], optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for hook in self._due(hooks):
            self._layers.call(hook, partial(hook.after_step, optimizer))

    def end_batch(self, hooks: Iterable[Hook]) -> None:
        """End a batch: leave the optimizers, and count steps that were not taken."""
        if not self._following:  # no hook was due
            return
        self.end()
        for hook in [hook for hook in hooks if isinstance(hook, WeightStatistics)]:
            if self._layers.is_due(hook):
                self._layers.call(hook, hook.end_batch)
            else:
                hook.forget_step()

    def end(self) -> None:
        """Leave the optimizers."""
        while self._following:
            self._following.popitem()[1].remove()

    def _due(self, hooks: Iterable[Hook]) -> list[WeightStatistics]:
        return [hook for hook in hooks if isinstance(hook, WeightStatistics) and self._layers.is_due(hook)]
