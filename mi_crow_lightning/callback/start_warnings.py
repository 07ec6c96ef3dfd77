"""What a user should know before a run is paid for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from mi_crow_lightning import trainer_facts as facts
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.loggers.scalar_choice import AUTO_LIMIT

__all__ = [
    "tell_of_fresh_graphs",
    "tell_of_summary",
    "warn_if_nothing_is_logged",
    "warn_of_controllers_never_due",
    "warn_of_evaluation_mode",
]


def warn_of_evaluation_mode(layers: Sequence[nn.Module]) -> None:
    """Warn when hooked layers are to be trained in evaluation mode."""
    asleep = sum(not layer.training for layer in layers)
    if asleep:
        warnings.warn(
            f"{asleep} of {len(layers)} hooked layers are in evaluation mode, and Lightning keeps that while it "
            "trains: no dropout, no gradient checkpointing. Models of from_pretrained come so; call .train() on "
            "what is to be trained before fit.",
            stacklevel=2,
        )


def warn_if_nothing_is_logged(trainer: pl.Trainer, detectors: Sequence[Hook], own_interval: int | None) -> None:
    """Warn when the run ends before the first step that is logged.

    Args:
        trainer: the Trainer, at the start of training.
        detectors: those with a schedule of their own know what they do.
        own_interval: the callback's ``log_every_n_steps``.
    """
    every, steps = facts.log_interval(trainer, own_interval), facts.steps_of_run(trainer)
    if any(hook.schedule is None for hook in detectors) and steps is not None and steps < every:
        warnings.warn(
            f"HookCallback writes readings every {every} steps, and this run takes {steps}: training will show "
            "none. Set log_every_n_steps, here or in the Trainer.",
            stacklevel=2,
        )


def tell_of_fresh_graphs(forgotten: bool) -> None:
    """Say that what was compiled is compiled again.

    Args:
        forgotten: whether anything was.
    """
    if forgotten:
        rank_zero_info(
            "HookCallback: what torch.compile compiled earlier in this process was forgotten (torch._dynamo.reset()), "
            "because its graphs do not hold this run's hooks. It is compiled again when it is called."
        )


def warn_of_controllers_never_due(trainer: pl.Trainer, controllers: Sequence[Hook]) -> None:
    """Warn of controllers that are off in all of a run that is no fit: its numbers would only look steered.

    In a fit that is usual: by default they act in the predict that follows.
    """
    stages = facts.stages_of_run(trainer)
    for hook in controllers if not facts.is_fitting(trainer) else ():
        if hook.enabled and not any(map(hook.when().may_be_due_in, stages)):
            name = facts.name_of_run(trainer)
            warnings.warn(
                f"{hook!r} is off in all of this {name}, by its schedule: {hook.when()!r}. To have it act here give it "
                f"schedule=Schedule(stages={name!r}); if it is to be off, disable() it.",
                stacklevel=2,
            )


def tell_of_summary(trainer: pl.Trainer, scalars: str, tags: int) -> None:
    """Say that the loggers get a summary over the layers, when that was not asked for.

    Args:
        trainer: the Trainer; without a logger there is nothing to say.
        scalars: the callback's argument.
        tags: how many the detectors would write in a stage.
    """
    if scalars == "auto" and tags > AUTO_LIMIT and trainer.loggers:
        rank_zero_info(
            f"HookCallback: {tags} tags a stage are more than {AUTO_LIMIT}, so loggers show min, median and max over "
            "the layers (scalars='summary'). Each layer's numbers are in history() and, with a TensorBoardLogger, in "
            "the event file (mi_crow_lightning.loggers.read_compact). scalars='all' shows them all."
        )
