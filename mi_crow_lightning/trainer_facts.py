"""Answers to questions about a Lightning Trainer and its module, such as which stage, step or batch is running.

Functions only; nothing is kept or changed. Lightning's private names are read here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from mi_crow_lightning._lightning_classes import is_a
from mi_crow_lightning.hooks.compiled.graphs import graphs_of
from mi_crow_lightning.hooks.schedules import Moment, Stage

__all__ = [
    "batch_sizes",
    "batches_that_stepped",
    "callbacks_of",
    "dataloaders_in_turn",
    "graphs_of_module",
    "is_a_trial",
    "is_compiled_as_a_whole",
    "is_fitting",
    "is_running",
    "leaves_out_empty_ranks",
    "log_interval",
    "logged_hyperparameters",
    "logs_hyperparameters",
    "logs_hyperparameters_by_itself",
    "loss_scale",
    "moment_of",
    "name_of_run",
    "partitions_weights",
    "samples_in_order",
    "samples_of_batch",
    "scale_of_gradients",
    "scales_gradients",
    "scales_losses_itself",
    "set_place",
    "shuffles",
    "spawns",
    "stages_of_run",
    "start_of_run",
    "steps_of_run",
    "takes_a_step",
    "tensor_parallel_size",
    "validates",
]


def is_fitting(trainer: pl.Trainer) -> bool:
    """Return whether the Trainer is in ``fit``; a validation may be part of one, or run without one."""
    return trainer.state.fn == TrainerFn.FITTING


def name_of_run(trainer: pl.Trainer) -> str:
    """Return the method that was called: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""
    assert trainer.state.fn is not None, "a callback's events belong to a run"
    return trainer.state.fn.value


def stages_of_run(trainer: pl.Trainer) -> tuple[Stage, ...]:
    """Return the stages that the run may come to."""
    return (Stage.TRAIN, Stage.VALIDATE) if is_fitting(trainer) else (Stage.of(name_of_run(trainer)),)


def start_of_run(trainer: pl.Trainer) -> Moment:
    """Return the moment of a run before its first batch."""
    return Moment(stages_of_run(trainer)[0], epoch=trainer.current_epoch, step=batches_that_stepped(trainer))


def logs_hyperparameters(trainer: pl.Trainer) -> bool:
    """Return whether the Trainer logs hyperparameters at the start of a run."""
    return bool(getattr(trainer, "enable_autolog_hparams", True))


def logged_hyperparameters(trainer: pl.Trainer) -> dict[str, Any] | None:
    """Return the hyperparameters that the Trainer logs at the start of a run; ``None`` if it logs none."""
    owners = [trainer.lightning_module, vars(trainer).get("datamodule")]
    given = [owner.hparams_initial for owner in owners if owner is not None and owner._log_hyperparams]
    joined = {name: value for one in given for name, value in one.items() if name != "_class_path"}
    return joined if given else None


def logs_hyperparameters_by_itself(logger: TensorBoardLogger) -> bool:
    """Return whether the logger writes a set of hyperparameters that comes without a metric, so that none is needed."""
    return bool(getattr(logger, "_default_hp_metric", True))


def is_running(trainer: pl.Trainer) -> bool:
    """Return whether the Trainer is in a run: neither finished nor interrupted."""
    return trainer.state.status == TrainerStatus.RUNNING


def is_a_trial(trainer: pl.Trainer) -> bool:
    """Return whether the run only tries something, as ``fast_dev_run`` and the Tuner do, and logs nothing."""
    return bool(vars(trainer)["fast_dev_run"]) or any(is_a(logger, DummyLogger) for logger in trainer.loggers)


def spawns(trainer: pl.Trainer) -> bool:
    """Return whether the run takes place in processes that this one starts, and not in this one."""
    return is_a(trainer.strategy.launcher, _MultiProcessingLauncher)


def leaves_out_empty_ranks(trainer: pl.Trainer) -> bool:
    """Return whether a rank without data skips a loop that the other ranks run."""
    owners = [owner for owner in (trainer.lightning_module, vars(trainer).get("datamodule")) if owner is not None]
    return trainer.world_size > 1 and any(owner.allow_zero_length_dataloader_with_multiple_devices for owner in owners)


def tensor_parallel_size(trainer: pl.Trainer) -> int:
    """Return over how many processes layers are split, 1 if they are not."""
    strategy = trainer.strategy
    mesh = strategy._device_mesh if is_a(strategy, ModelParallelStrategy) else None
    return mesh["tensor_parallel"].size() if mesh is not None else 1


def batches_that_stepped(trainer: pl.Trainer) -> int:
    """Return the number of steps taken so far, as Lightning counts them for the x axis of its loggers.

    Not ``global_step``, which counts the step of each optimizer if there are several.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def takes_a_step(trainer: pl.Trainer) -> bool:
    """Return whether the training batch that just ran was the last micro-batch of its step."""
    return not trainer.fit_loop._should_accumulate()


def scales_gradients(trainer: pl.Trainer) -> bool:
    """Return whether a gradient scaler is on, which leaves out the steps whose gradients overflow."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def set_place(trainer: pl.Trainer, epoch: int, step: int) -> None:
    """Let a Trainer that has not run yet count from an epoch and a step on."""
    loop = trainer.fit_loop
    loop.epoch_progress.current.completed = epoch
    vars(loop.epoch_progress.current)["processed"] = epoch  # which its type does not declare
    loop.epoch_loop._batches_that_stepped = step
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step


def log_interval(trainer: pl.Trainer, own: int | None) -> int:
    """Return the steps from one logged step to the next: ``own`` if given, else the Trainer's; 0 for never."""
    trainer_vars = vars(trainer)  # the Trainer's type does not declare what its connectors set
    if trainer_vars["fast_dev_run"]:
        return 1  # as Lightning does
    return int(trainer_vars["log_every_n_steps"]) if own is None else own


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Return the Trainer's callbacks."""
    return list(vars(trainer)["callbacks"])


def dataloaders_in_turn(trainer: pl.Trainer, stage: Stage) -> int:
    """Return how many dataloaders an evaluation runs one after the other.

    It is 1 where a stage takes a batch of each at once, and before a fit has loaded those of its validation.
    """
    loop = _loop_of(trainer, stage)
    if stage is Stage.TRAIN or loop._combined_loader is None:
        return 1
    if not getattr(loop, "_is_sequential", True):  # predict knows no other way
        return 1
    return int(loop.num_dataloaders)


def _loop_of(trainer: pl.Trainer, stage: Stage) -> Any:
    """Return the loop that runs the batches of a stage."""
    loops: dict[Stage, Any] = {
        Stage.TRAIN: trainer.fit_loop,
        Stage.VALIDATE: trainer.fit_loop.epoch_loop.val_loop if is_fitting(trainer) else trainer.validate_loop,
        Stage.TEST: trainer.test_loop,
        Stage.PREDICT: trainer.predict_loop,
    }
    return loops[stage]


def moment_of(
    trainer: pl.Trainer,
    stage: Stage,
    batch_idx: int,
    dataloader_idx: int = 0,
    log_every_n_steps: int | None = None,
) -> Moment:
    """Return the moment of the running batch.

    Args:
        trainer: the Trainer.
        stage: its running stage.
        batch_idx: index of the batch in its dataloader.
        dataloader_idx: index of the dataloader.
        log_every_n_steps: how often readings are written; ``None`` for the Trainer's interval, 0 for never.
    """
    every = log_interval(trainer, log_every_n_steps)
    step = batches_that_stepped(trainer)
    return Moment(
        stage=stage,
        epoch=trainer.current_epoch,
        batch_idx=batch_idx,
        dataloader_idx=dataloader_idx,
        step=step if stage in (Stage.TRAIN, Stage.VALIDATE) else batch_idx,
        # As Lightning decides it, so that our curves share their steps with those of `self.log`.
        logged=stage is Stage.TRAIN and every > 0 and (step + 1) % every == 0,
    )


def loss_scale(trainer: pl.Trainer) -> Callable[[torch.device], torch.Tensor] | None:
    """Return what gives the factor of a scaled loss on a device, without waiting for it; ``None`` without a scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    return lambda device: cast("torch.Tensor", scaler.scale(torch.ones((), device=device)))


def scale_of_gradients(trainer: pl.Trainer, optimizer: object) -> Callable[[torch.device], torch.Tensor] | None:
    """Return what gives the factor of the gradients before a step, ``None`` where Lightning has unscaled them."""
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else None


def partitions_weights(trainer: pl.Trainer) -> str | None:
    """Return the name of the strategy if it keeps weights in a separate form, flattened or in another engine."""
    strategy = trainer.strategy
    return type(strategy).__name__ if is_a(strategy, FSDPStrategy, DeepSpeedStrategy) else None


def scales_losses_itself(trainer: pl.Trainer) -> bool:
    """Return whether the strategy multiplies losses by a factor that only it knows."""
    return is_a(trainer.strategy, DeepSpeedStrategy) and str(trainer.precision).startswith("16")


def validates(trainer: pl.Trainer) -> bool:
    """Return whether a fit that begins comes to a validation, as far as loaders, limits and epochs say."""
    every, last = vars(trainer)["check_val_every_n_epoch"], trainer.max_epochs
    ends = every is None or last is None or last < 0 or last // every > trainer.current_epoch // every
    return bool(trainer.enable_validation) and ends


def steps_of_run(trainer: pl.Trainer) -> int | None:
    """Return how many steps a fit takes in all, ``None`` if that is not known when training starts."""
    limits = [limit for limit in (trainer.max_steps,) if limit is not None and limit > 0]
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and batches != float("inf"):
        limits.append(trainer.max_epochs * -(-int(batches) // trainer.accumulate_grad_batches))
    return min(limits) if limits else None


def samples_of_batch(trainer: pl.Trainer, batch_idx: int, dataloader_idx: int) -> list[int] | None:
    """Return the dataset indices of a predict batch's samples, ``None`` if the dataloader does not record them."""
    loaders = trainer.predict_loop._combined_loader
    sampler = getattr(loaders.flattened[dataloader_idx], "batch_sampler", None) if loaders is not None else None
    return list(sampler.seen_batch_indices[batch_idx]) if is_a(sampler, _IndexBatchSamplerWrapper) else None


def samples_in_order(trainer: pl.Trainer, stage: Stage, dataloader_idx: int) -> list[list[int]] | None:
    """Return the dataset indices of each batch that this rank gets of an evaluation's dataloader.

    They follow from its sampler, if that is one of torch's that keep the order. ``None`` for any other sampler, which
    may give the samples in another order each time, and where there are no indices.
    """
    loaders = _loop_of(trainer, stage)._combined_loader
    loader = loaders.flattened[dataloader_idx] if loaders is not None else None
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    in_order = type(sampler) is SequentialSampler or (isinstance(sampler, DistributedSampler) and not sampler.shuffle)
    if type(batches) is not BatchSampler or not in_order:
        return None
    return [list(batch) for batch in batches]


def shuffles(loader: object) -> bool:
    """Return whether a dataloader gives its samples in another order each time, by one of torch's own samplers."""
    if not isinstance(loader, DataLoader):
        return False
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    return isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))


def batch_sizes(trainer: pl.Trainer, stage: Stage) -> tuple[int, ...] | None:
    """Return the sizes that the batches of a stage have, ``None`` if its dataloaders do not say.

    A fit loads its data after its start. A ``collate_fn`` may make any number of rows, and so may a step that takes a
    batch of each of several dataloaders at once.
    """
    loaded = _loop_of(trainer, stage)._combined_loader
    loaders = loaded.flattened if loaded is not None else []
    sizes = [_batch_sizes(loader) for loader in loaders]
    if not sizes or not all(sizes) or len(sizes) > dataloaders_in_turn(trainer, stage):
        return None
    return tuple(size for of_loader in sizes for size in of_loader)


def _batch_sizes(loader: object) -> tuple[int, ...]:
    """Return the sizes of a dataloader's batches: full ones, and the last; nothing if it does not say."""
    if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate:
        return ()
    size, sampler = (getattr(loader.batch_sampler, name, None) for name in ("batch_size", "sampler"))
    if not isinstance(size, int) or not isinstance(sampler, Sized):
        return ()
    full, rest = divmod(len(sampler), size)
    return (size,) * bool(full) + (rest,) * bool(rest)


def is_compiled_as_a_whole(pl_module: pl.LightningModule) -> bool:
    """Return whether the LightningModule itself was given to ``torch.compile``."""
    return getattr(pl_module, "_compiler_ctx", None) is not None


def graphs_of_module(pl_module: pl.LightningModule) -> Mapping[nn.Module, nn.Module]:
    """Return the modules that run inside a compiled graph, see `graphs_of`."""
    return graphs_of(pl_module, is_compiled_as_a_whole(pl_module))
