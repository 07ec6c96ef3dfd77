"""What changes from batch to batch, as hooks in a compiled graph see it: in tensors that are filled anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from mi_crow_lightning.hooks.schedules import Moment

__all__ = ["TracedBatch"]

_NUMBERS = ("epoch", "batch_idx", "dataloader_idx", "step")


class TracedBatch:
    """The running batch.

    Args:
        device: where the tensors are.

    Attributes:
        moment: as `Layers.moment`, with its numbers as int64 tensors ``()``; ``None`` outside a Trainer.
        token_mask: gives the mask of the running batch's real tokens; ``None`` where the user gave no function.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._numbers = {name: torch.zeros((), dtype=torch.int64, device=device) for name in _NUMBERS}
        self.moment: Moment | None = None
        self.token_mask: Callable[[Any], Tensor] | None = None

    def begin(self, moment: Moment | None, batch: Any, token_mask: Callable[[Any], Tensor] | None) -> None:
        """A batch begins."""
        if moment is None:
            self.moment = None
        else:
            for name, tensor in self._numbers.items():
                tensor.fill_(getattr(moment, name))
            numbers = cast("dict[str, Any]", self._numbers)  # only hooks that are traced see them
            self.moment = Moment(stage=moment.stage, logged=moment.logged, **numbers)
        self.token_mask = _Given(token_mask(batch)) if token_mask is not None and batch is not None else None


class _Given:
    """The mask of the running batch: what makes it may be no matter for a compiler."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def __call__(self, batch: Any) -> Tensor:
        return self._mask
