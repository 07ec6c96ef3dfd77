"""``transformers.Trainer`` as alarms see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mi_crow_lightning._shown import shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.alarms.actions import SaveCheckpoint
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.alarms.watched_trainer import drop_gradients
from mi_crow_lightning.hf_trainer import facts
from mi_crow_lightning.hooks.schedules import Moment
from mi_crow_lightning.warnings import AlarmWarning

__all__ = ["TransformersTrainer", "check_actions"]


class TransformersTrainer:
    """A `WatchedTrainer`.

    Args:
        trainer: the Trainer, when a run begins.
        trains: whether the run is one of ``train``.
    """

    optimizes_itself = False

    def __init__(self, trainer: Any, trains: bool) -> None:
        self.trainer, self.trains = trainer, trains
        self.module: nn.Module = trainer.model
        self.rank = int(trainer.args.process_index)
        self.device: torch.device = trainer.args.device
        self.precision = str(trainer.accelerator.mixed_precision)
        self.versions: Mapping[str, str] = {"transformers": str(transformers.__version__)}

    @property
    def skips_overflows(self) -> bool:
        """Whether a gradient scaler leaves out the steps whose gradients overflow."""
        return facts.loss_scale(self.trainer) is not None

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizer inside accelerate's."""
        return [getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)]

    def loss_scale(self) -> Callable[[torch.device], Tensor] | None:
        """Return ``None``: what ``training_step`` returns is not multiplied by the scaler."""
        return None

    def loss_of_step(self, losses: Sequence[float]) -> float:
        """Return the sum: each micro-batch has its share of the step's loss."""
        return sum(losses)

    def position(self, moment: Moment) -> int:
        """Return the step as the Trainer logs it."""
        return facts.position(moment)

    def folder(self) -> Path:
        """Return a folder ``alarms`` in the Trainer's ``output_dir``."""
        return Path(self.trainer.args.output_dir) / "alarms"

    def stop(self) -> None:
        """End the run as callbacks of the Trainer do."""
        self.trainer.control.should_training_stop = True

    def leave_out_step(self) -> None:
        """Drop the gradients, which the Trainer has not clipped yet."""
        drop_gradients(self.module.parameters(), looks_later=self.skips_overflows)

    def save_checkpoint(self, firing: Firing, folder: str | None) -> None:
        """Let the Trainer save one once the step is over, as callbacks of the Trainer do."""
        if self.trains:
            self.trainer.control.should_save = True
        elif self.rank == 0:
            warn(f"{firing}. No checkpoint is saved: only training has some.", AlarmWarning, stacklevel=7)


def check_actions(alarms: Iterable[Alarm]) -> None:
    """Refuse actions that this Trainer cannot take.

    Raises:
        ValueError: an alarm has such an action.
    """
    for alarm in alarms:
        for action in alarm.actions:
            if isinstance(action, SaveCheckpoint) and action.folder is not None:
                raise ValueError(
                    f"the alarm {alarm.name!r} saves to folder={shown(action.folder)}, and transformers.Trainer saves "
                    "all checkpoints in its output_dir: leave folder= out"
                )
