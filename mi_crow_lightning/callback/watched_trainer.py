"""Lightning's Trainer as alarms see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning import __version__ as lightning_version
from torch import Tensor, nn

from mi_crow_lightning import trainer_facts
from mi_crow_lightning.alarms.actions import file_stem, free_path
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.alarms.watched_trainer import drop_gradients
from mi_crow_lightning.hooks.schedules import Moment

__all__ = ["LightningTrainer"]


class LightningTrainer:
    """A `WatchedTrainer`.

    Args:
        trainer: the Trainer, in a run.
        module: its module.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.trainer, self.rank = trainer, trainer.global_rank
        self.module: nn.Module = module
        self._module = module
        self.device = trainer.strategy.root_device
        self.trains = trainer_facts.is_fitting(trainer)
        self.precision = str(trainer.precision)
        self.versions: Mapping[str, str] = {"lightning": lightning_version}

    @property
    def optimizes_itself(self) -> bool:
        """Whether the training step takes the optimizer steps."""
        return not self._module.automatic_optimization

    @property
    def skips_overflows(self) -> bool:
        """Whether a gradient scaler leaves out the steps whose gradients overflow."""
        return trainer_facts.scales_gradients(self.trainer)

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizers."""
        return self.trainer.optimizers

    def loss_scale(self) -> Callable[[torch.device], Tensor] | None:
        """Return what gives the factor of a scaled loss."""
        return trainer_facts.loss_scale(self.trainer)

    def loss_of_step(self, losses: Sequence[float]) -> float:
        """Return the loss of a step from what backward ran on.

        Lightning divides the losses of micro-batches by how many make a step, also in the last step of an epoch, which
        may have fewer.
        """
        if self.optimizes_itself:
            return sum(losses)
        return sum(losses) / len(losses) * self.trainer.accumulate_grad_batches

    def position(self, moment: Moment) -> int:
        """Return the step of a batch: Lightning logs its first at 0."""
        return moment.step

    def folder(self) -> Path:
        """Return a folder ``alarms`` where the run logs, if that is on this machine."""
        logs = str(self.trainer.log_dir or self.trainer.default_root_dir)
        return Path("" if "://" in logs else logs) / "alarms"

    def stop(self) -> None:
        """End the run as `EarlyStopping` does."""
        self.trainer.should_stop = True

    def leave_out_step(self) -> None:
        """Drop the gradients."""
        looks_later = any(trainer_facts.scale_of_gradients(self.trainer, one) for one in self.optimizers)
        drop_gradients(self.module.parameters(), looks_later)

    def save_checkpoint(self, firing: Firing, folder: str | None) -> None:
        """Save a file at once."""
        path = str(free_path(Path(folder) if folder is not None else self.folder(), file_stem(firing), ".ckpt"))
        self.trainer.save_checkpoint(self.trainer.strategy.broadcast(path))  # ranks may look at different moments
