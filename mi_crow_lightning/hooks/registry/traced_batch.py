"""The facts of the running batch for hooks in a compiled graph: tensors that each batch fills again."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mi_crow_lightning.hooks.passes.running_batch import NO_BATCH, RunningBatch
from mi_crow_lightning.hooks.schedules import Moment

__all__ = ["TracedBatch"]

_NUMBERS = ("epoch", "batch_idx", "dataloader_idx", "step")


class TracedBatch:
    """The running batch with its numbers in tensors.

    Args:
        device: where the tensors are.

    Attributes:
        running: the batch; the numbers of its moment are int64 tensors ``()``, and its ``token_mask`` returns a mask
            that was made before the graph runs.
        seen: what operations that only observe write to, see ``called_in_graph.py``.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._numbers = {name: torch.zeros((), dtype=torch.int64, device=device) for name in _NUMBERS}
            self.seen = torch.zeros((), device=device)
        self.running = NO_BATCH

    def begin(self, batch: RunningBatch) -> None:
        """Begin a batch."""
        moment, given, token_mask = batch.moment, batch.batch, batch.token_mask
        if moment is not None:
            for name, tensor in self._numbers.items():
                tensor.fill_(getattr(moment, name))
            numbers = cast("dict[str, Any]", self._numbers)  # only traced hooks see them
            moment = Moment(stage=moment.stage, logged=moment.logged, **numbers)
        mask = _Given(token_mask(given)) if token_mask is not None and given is not None else None
        self.running = RunningBatch(moment, given, mask)


class _Given:
    """The ready-made mask of the running batch, because a compiler may not follow the function that makes it."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def __call__(self, batch: Any) -> Tensor:
        return self._mask
