"""Answers to questions about a ``transformers.Trainer``; nothing is kept or changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mi_crow_lightning.hooks.schedules import Moment, Stage

__all__ = [
    "STAGE_OF",
    "checkpoint_folder",
    "first_batch",
    "is_logged",
    "log_interval",
    "loss_scale",
    "position",
    "resumed_from",
    "steps_of_epoch",
]


def steps_of_epoch(trainer: Any) -> int:
    """Return how many optimizer steps an epoch has, as the Trainer counts them."""
    try:
        batches = len(trainer.callback_handler.train_dataloader)
    except TypeError:  # an IterableDataset: there max_steps ends the only epoch
        return max(int(trainer.state.max_steps), 1)
    return max(-(-batches // int(trainer.args.gradient_accumulation_steps)), 1)


def first_batch(trainer: Any) -> int:
    """Return the index of the batch that a run which begins will train on first: above 0 if it goes on in an epoch."""
    if trainer.args.ignore_data_skip:
        return 0
    return int(trainer.state.global_step % steps_of_epoch(trainer) * trainer.args.gradient_accumulation_steps)


def log_interval(trainer: Any, own: int | None) -> int:
    """Return the steps from one logged step to the next: ``own`` if given, else the Trainer's; 0 for never."""
    if own is not None:
        return own
    strategy = str(trainer.args.logging_strategy.value)
    if strategy == "epoch":
        return steps_of_epoch(trainer)
    return int(trainer.state.logging_steps or trainer.args.logging_steps) if strategy == "steps" else 0


def is_logged(trainer: Any, own: int | None) -> bool:
    """Return whether readings are written once the step that runs now is done, as the Trainer writes its loss."""
    every, step = log_interval(trainer, own), int(trainer.state.global_step)
    first = own is None and every > 0 and bool(trainer.args.logging_first_step) and step == 0
    return first or (every > 0 and (step + 1) % every == 0)


def position(moment: Moment) -> int:
    """Return where a batch of training or evaluation stands on the x axis: the Trainer logs its first step at 1."""
    return moment.step + (moment.stage is Stage.TRAIN)


def loss_scale(trainer: Any) -> Callable[[torch.device], Tensor] | None:
    """Return what gives the factor of a scaled loss on a device, without waiting for it; ``None`` without a scaler."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    return lambda device: cast("Tensor", scaler.scale(torch.ones((), device=device)))


def checkpoint_folder(trainer: Any, trial: Any) -> Path:
    """Return the folder of the checkpoint that the Trainer has just saved."""
    return Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"


def resumed_from(trainer: Any, given: object) -> Path | None:
    """Return the folder that ``train(resume_from_checkpoint=given)`` goes on from; without one the Trainer raises."""
    from transformers.trainer_utils import get_last_checkpoint

    found = get_last_checkpoint(trainer.args.output_dir) if given is True else given
    return Path(str(found)) if found else None


STAGE_OF = {"evaluate": Stage.VALIDATE, "predict": Stage.PREDICT}
"""The stages of the methods that evaluate."""
