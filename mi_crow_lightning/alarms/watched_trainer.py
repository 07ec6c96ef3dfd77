"""The Trainer of a run as alarms see it: what they ask of any Trainer, and what their actions have it do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.hooks.schedules import Moment

__all__ = ["WatchedTrainer", "drop_gradients"]


class WatchedTrainer(Protocol):
    """A Trainer in a run; each of the callbacks has a class with this face.

    Attributes:
        trainer: the Trainer itself.
        module: the module that it trains.
        rank: this process's rank.
        device: where ranks exchange tensors.
        trains: whether the run trains.
        optimizes_itself: whether the training step takes the optimizer steps, and not the Trainer.
        skips_overflows: whether a gradient scaler leaves out the steps whose gradients overflow.
        precision: the precision, in the Trainer's words.
        optimizers: the optimizers.
        versions: the versions of the libraries that a snapshot names.
    """

    trainer: Any
    module: nn.Module
    rank: int
    device: torch.device
    trains: bool
    precision: str
    versions: Mapping[str, str]

    @property
    def optimizes_itself(self) -> bool: ...

    @property
    def skips_overflows(self) -> bool: ...

    @property
    def optimizers(self) -> Sequence[Any]: ...

    def loss_scale(self) -> Callable[[torch.device], Tensor] | None:
        """Return what gives the factor in the losses that alarms get; ``None`` for no factor."""

    def loss_of_step(self, losses: Sequence[float]) -> float:
        """Return the loss of an optimizer step from those of its micro-batches."""

    def position(self, moment: Moment) -> int:
        """Return where the readings of a batch stand on the x axis of loggers."""

    def folder(self) -> Path:
        """Return where files of this run go by default; the same on all ranks."""

    def stop(self) -> None:
        """End the run after this step."""

    def leave_out_step(self) -> None:
        """Let the optimizer step that is about to come change nothing."""

    def save_checkpoint(self, firing: Firing, folder: str | None) -> None:
        """Save a checkpoint; all ranks ask together.

        Args:
            firing: what fired.
            folder: where to; ``None`` for the default.
        """


def drop_gradients(parameters: Iterable[nn.Parameter], looks_later: bool) -> None:
    """Drop gradients, so that an optimizer leaves the weights as they are.

    Args:
        parameters: the parameters.
        looks_later: whether a gradient scaler is still to look at them: it asks for some, and leaves out a step in
            which one is infinite.
    """
    for parameter in parameters:
        if looks_later and parameter.grad is not None:
            parameter.grad.fill_(math.inf)
        else:
            parameter.grad = None
