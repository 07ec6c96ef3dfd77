"""Warnings and notes at the start of a run, before time is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._warned import warn
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.loggers.scalar_choice import AUTO_LIMIT, Scalars
from mi_crow_lightning.runs import start_notes
from mi_crow_lightning.warnings import MiCrowWarning, NothingSeenWarning

__all__ = [
    "log_fresh_graphs",
    "log_summary",
    "warn_if_nothing_is_logged",
    "warn_of_controllers_never_due",
    "warn_of_detectors_without_validation",
    "warn_of_evaluation_mode",
]


def warn_of_evaluation_mode(layers: Sequence[nn.Module]) -> None:
    """Warn if hooked layers are to be trained in evaluation mode; several hooks may be on one."""
    distinct = set(layers)
    asleep = sum(not layer.training for layer in distinct)
    if asleep:
        warn(
            f"{asleep} of {len(distinct)} hooked layers are in evaluation mode, and Lightning leaves them in it: they "
            "train without dropout and gradient checkpointing. from_pretrained returns models in this mode; call "
            ".train() before fit on what is to be trained.",
            MiCrowWarning,
            stacklevel=2,
        )


def warn_if_nothing_is_logged(trainer: pl.Trainer, detectors: Sequence[Hook], own_interval: int | None) -> None:
    """Warn if the run ends before the first step that is logged.

    Args:
        trainer: the Trainer, at the start of training.
        detectors: the detectors; those with their own schedule do not count.
        own_interval: the callback's ``log_every_n_steps``.
    """
    every, steps = trainer_facts.log_interval(trainer, own_interval), trainer_facts.steps_of_run(trainer)
    setting = "log_every_n_steps, here or in the Trainer"
    start_notes.warn_if_nothing_is_logged("HookCallback", detectors, every, steps, setting)


def warn_of_controllers_never_due(trainer: pl.Trainer, controllers: Sequence[Hook]) -> None:
    """Warn of controllers that are off during a whole evaluation or predict, whose numbers would only look steered.

    In a fit that is usual: by default controllers act in the predict that follows.
    """
    if trainer_facts.is_fitting(trainer):
        return
    stages = trainer_facts.stages_of_run(trainer)
    start_notes.warn_of_controllers_never_due(controllers, stages, trainer_facts.name_of_run(trainer))


def warn_of_detectors_without_validation(trainer: pl.Trainer, detectors: Sequence[Hook]) -> None:
    """Warn of detectors that read validation passes alone, in a fit that has none."""
    if trainer_facts.validates(trainer):
        return
    for hook in detectors:
        when = hook.when()
        if hook.enabled and when.may_be_due_in(Stage.VALIDATE) and not when.may_be_due_in(Stage.TRAIN):
            warn(
                f"{hook!r} reads in validation, and this fit has none, so it will show nothing of the fit: give fit "
                "validation data, or call trainer.validate(...) after it.",
                NothingSeenWarning,
                stacklevel=2,
            )


def log_fresh_graphs(dropped: bool) -> None:
    """Log that what was compiled is compiled again.

    Args:
        dropped: whether any graph was dropped.
    """
    if dropped:
        rank_zero_info(start_notes.fresh_graphs_in_words("HookCallback"))


def log_summary(trainer: pl.Trainer, scalars: Scalars, tags: int) -> None:
    """Log that loggers get a summary over the layers, if nobody asked for one.

    Args:
        trainer: the Trainer; without a logger there is nothing to log.
        scalars: the callback's argument.
        tags: the number of tags a stage that the detectors would write.
    """
    if scalars == "auto" and tags > AUTO_LIMIT and trainer.loggers:
        rank_zero_info(
            f"HookCallback: {tags} tags a stage are more than {AUTO_LIMIT}, so loggers show min, median and max over "
            "the layers. Each layer's numbers are in history() and, with a TensorBoardLogger, in the event file (the "
            "tab Activations shows them, and mi_crow_lightning.loggers.read_compact reads them). scalars=['rms'] shows "
            "each layer's rms, say, and scalars='all' everything."
        )
