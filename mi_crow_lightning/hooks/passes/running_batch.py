"""The batch that a Trainer runs: one value, shared by every hook called in the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mi_crow_lightning.hooks.schedules import Moment, Stage

__all__ = ["NO_BATCH", "RunningBatch"]


@dataclass(frozen=True, eq=False)
class RunningBatch:
    """The running batch and its place in the Trainer's time.

    Attributes:
        moment: its place in the Trainer's time; ``None`` outside a Trainer.
        batch: the batch as it was loaded; ``None`` if nobody gave it.
        token_mask: the user's function from a batch to the mask of its real tokens.
        stage: the stage that the Trainer is in; ``None`` outside a Trainer.
    """

    moment: Moment | None = None
    batch: Any = field(default=None, repr=False)
    token_mask: Callable[[Any], Tensor] | None = None
    stage: Stage | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stage", self.moment.stage if self.moment is not None else None)


NO_BATCH = RunningBatch()
