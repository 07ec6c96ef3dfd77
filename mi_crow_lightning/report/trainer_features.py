"""The features of a Trainer that matter to hooks. "Supported" is what the tests run."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._lightning_classes import is_a, is_just_a
from mi_crow_lightning.loggers.scalar_choice import Choice
from mi_crow_lightning.report.feature import Feature, Support
from mi_crow_lightning.report.logger_features import logger_feature
from mi_crow_lightning.report.refusals import tensor_parallel_refusal

__all__ = ["accumulation", "dataloaders", "dataloaders_apart", "loggers", "precision", "strategy"]

_SEVERAL_PROCESSES = (DDPStrategy, ModelParallelStrategy)
_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")


def strategy(trainer: pl.Trainer) -> Feature:
    """Return the strategy and its number of processes."""
    used, processes = trainer.strategy, trainer.world_size
    value = f"{type(used).__name__}, {processes} process{'es' if processes > 1 else ''}"
    if is_just_a(used, SingleDeviceStrategy):
        return Feature("strategy", value, Support.SUPPORTED)
    if not is_just_a(used, *_SEVERAL_PROCESSES):
        return Feature("strategy", value, Support.UNTESTED)
    if (refusal := tensor_parallel_refusal(trainer)) is not None:
        return Feature("strategy", value, Support.REFUSED, refusal)
    if trainer_facts.spawns(trainer):
        note = "what is kept in memory, such as history(), stays in the processes; loggers and callback_metrics do not"
        return Feature("strategy", value, Support.DEGRADED, note)
    return Feature("strategy", value, Support.SUPPORTED, "readings are those of all processes")


def precision(trainer: pl.Trainer) -> Feature:
    """Return the precision."""
    value = str(trainer.precision)
    if value not in _PRECISIONS:
        return Feature("precision", value, Support.UNTESTED)
    note = "" if value in ("32-true", "64-true") else "statistics are summed in float32 or better"
    return Feature("precision", value, Support.SUPPORTED, note)


def accumulation(trainer: pl.Trainer) -> Feature:
    """Return gradient accumulation, which only a fit does."""
    batches = trainer.accumulate_grad_batches
    if batches == 1 or not trainer_facts.is_fitting(trainer):
        return Feature.unused("gradient accumulation")
    note = "a reading covers all batches of its step"
    return Feature("gradient accumulation", f"{batches} batches a step", Support.SUPPORTED, note)


def dataloaders(trainer: pl.Trainer, apart: bool) -> list[Feature]:
    """Return that each dataloader of an evaluation has its own readings, if that is so.

    Args:
        trainer: the Trainer.
        apart: the callback's ``per_dataloader``.
    """
    if not apart:
        return []
    count = dataloaders_apart(trainer)
    value = f"{count} read apart" if count > 1 else "read apart"
    return [Feature("dataloaders", value, Support.SUPPORTED, "tags of an evaluation end in /dataloader_idx_<i>")]


def dataloaders_apart(trainer: pl.Trainer) -> int:
    """Return how many dataloaders of a stage have their own readings with ``per_dataloader``, as far as is known."""
    return max(trainer_facts.dataloaders_in_turn(trainer, stage) for stage in trainer_facts.stages_of_run(trainer))


def loggers(trainer: pl.Trainer, choice: Choice) -> list[Feature]:
    """Return each logger as a feature; an unused one if there are none.

    Args:
        trainer: the Trainer.
        choice: the readings that they show.
    """
    return [_logger(logger, choice) for logger in trainer.loggers] or [Feature.unused("logger")]


def _logger(logger: Logger, choice: Choice) -> Feature:
    # By class: asking a logger for its `experiment` would start its run before Lightning does.
    name = type(logger).__name__
    if is_a(logger, DummyLogger):
        return Feature("logger", name, Support.DEGRADED, "keeps nothing; the numbers are in history()")
    return logger_feature(name, choice, is_a(logger, TensorBoardLogger), is_a(logger, WandbLogger))
