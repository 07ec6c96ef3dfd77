"""What hooks need to know of a Lightning Trainer. Its private names are read here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.errors import LayerNotFound, RegistrationError
from mi_crow_lightning.hooks.compiled.graphs import graphs_of
from mi_crow_lightning.hooks.schedules import Moment, Stage

__all__ = [
    "batches_that_stepped",
    "callbacks_of",
    "find_root",
    "graphs_of_module",
    "is_compiled_as_a_whole",
    "is_fitting",
    "is_running",
    "log_interval",
    "moment_of",
    "name_of_run",
    "refuse_ranks_left_out",
    "refuse_tensor_parallel",
    "samples_of_batch",
    "spawns",
    "stages_of_run",
    "steps_of_run",
    "takes_a_step",
    "tensor_parallel_refusal",
]


def is_fitting(trainer: pl.Trainer) -> bool:
    """Whether the Trainer is in ``fit``; a validation may be a part of that, or run on its own."""
    return trainer.state.fn == TrainerFn.FITTING


def name_of_run(trainer: pl.Trainer) -> str:
    """What was called: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""
    assert trainer.state.fn is not None, "a callback's events belong to a run"
    return trainer.state.fn.value


def stages_of_run(trainer: pl.Trainer) -> tuple[Stage, ...]:
    """The stages that the run may come to."""
    return (Stage.TRAIN, Stage.VALIDATE) if is_fitting(trainer) else (Stage.of(name_of_run(trainer)),)


def is_running(trainer: pl.Trainer) -> bool:
    """Whether the Trainer is in a run: neither finished nor interrupted."""
    return trainer.state.status == TrainerStatus.RUNNING


def spawns(trainer: pl.Trainer) -> bool:
    """Whether the run takes place in processes that this one starts, and not in this one."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def refuse_tensor_parallel(trainer: pl.Trainer) -> None:
    """Refuse layers that are split over processes.

    Raises:
        RegistrationError: they are.
    """
    refusal = tensor_parallel_refusal(trainer)
    if refusal is not None:
        raise RegistrationError(refusal)


def refuse_ranks_left_out(trainer: pl.Trainer) -> None:
    """Refuse what lets a rank without data skip a loop, in which the others would wait for its share of the readings.

    Raises:
        RegistrationError: it is switched on, and there are several ranks.
    """
    owners = [owner for owner in (trainer.lightning_module, vars(trainer).get("datamodule")) if owner is not None]
    if trainer.world_size > 1 and any(owner.allow_zero_length_dataloader_with_multiple_devices for owner in owners):
        raise RegistrationError(
            "allow_zero_length_dataloader_with_multiple_devices=True: Lightning leaves a rank without data out of the "
            "loop, and the others would wait for it to exchange readings. Leave it False, and give each rank a batch, "
            "or an IterableDataset without a length."
        )


def tensor_parallel_refusal(trainer: pl.Trainer) -> str | None:
    """Why hooks are refused where layers are split over processes; ``None`` where they are not."""
    strategy = trainer.strategy
    mesh = strategy._device_mesh if isinstance(strategy, ModelParallelStrategy) else None
    size = mesh["tensor_parallel"].size() if mesh is not None else 1
    if size == 1:
        return None
    return (
        f"tensor_parallel_size={size}: each process has all tokens of its group or a part of their features, so "
        "readings would count tokens several times and edits could miss features. Use "
        "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) with fully_shard, or strategy='ddp'."
    )


def batches_that_stepped(trainer: pl.Trainer) -> int:
    """Steps taken so far, as Lightning counts them for the x axis of its loggers.

    Not ``global_step``: that one also counts each optimizer's step when there are several.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def takes_a_step(trainer: pl.Trainer) -> bool:
    """Whether the training batch that just ran was the last micro-batch of its step."""
    return not trainer.fit_loop._should_accumulate()


def log_interval(trainer: pl.Trainer, own: int | None) -> int:
    """Steps from one logged step to the next: ``own`` if given, else the Trainer's; 0 for never."""
    trainer_vars = vars(trainer)  # the Trainer's type does not declare what its connectors set
    if trainer_vars["fast_dev_run"]:
        return 1  # as Lightning does
    return int(trainer_vars["log_every_n_steps"]) if own is None else own


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """The Trainer's callbacks."""
    return list(vars(trainer)["callbacks"])


def moment_of(
    trainer: pl.Trainer,
    stage: Stage,
    batch_idx: int,
    dataloader_idx: int = 0,
    log_every_n_steps: int | None = None,
) -> Moment:
    """The running batch in the Trainer's time.

    Args:
        trainer: the Trainer.
        stage: what it is doing.
        batch_idx: the batch.
        dataloader_idx: which of several dataloaders it is from.
        log_every_n_steps: how often readings are written; ``None`` for the Trainer's own, 0 for never.
    """
    every = log_interval(trainer, log_every_n_steps)
    step = batches_that_stepped(trainer)
    return Moment(
        stage=stage,
        epoch=trainer.current_epoch,
        batch_idx=batch_idx,
        dataloader_idx=dataloader_idx,
        step=step if stage in (Stage.TRAIN, Stage.VALIDATE) else batch_idx,
        # As Lightning decides it, so that our curves lie under those of `self.log`.
        logged=stage is Stage.TRAIN and every > 0 and (step + 1) % every == 0,
    )


def steps_of_run(trainer: pl.Trainer) -> int | None:
    """Steps that a fit will take in all, where that is known once training starts."""
    limits = [limit for limit in (trainer.max_steps,) if limit is not None and limit > 0]
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and batches != float("inf"):
        limits.append(trainer.max_epochs * -(-int(batches) // trainer.accumulate_grad_batches))
    return min(limits) if limits else None


def samples_of_batch(trainer: pl.Trainer, batch_idx: int, dataloader_idx: int) -> list[int] | None:
    """The places in the dataset of a predict batch's samples; ``None`` where the dataloader does not tell."""
    loaders = trainer.predict_loop._combined_loader
    sampler = getattr(loaders.flattened[dataloader_idx], "batch_sampler", None) if loaders is not None else None
    return list(sampler.seen_batch_indices[batch_idx]) if isinstance(sampler, _IndexBatchSamplerWrapper) else None


def find_root(pl_module: pl.LightningModule, root: str | None) -> nn.Module:
    """The module that layer names are relative to.

    Raises:
        LayerNotFound: ``root`` is not a module of ``pl_module``.
    """
    if not root:
        return pl_module
    tree = ModuleTree(pl_module)
    if root not in tree.modules:
        raise LayerNotFound(
            f"root={root!r} is not a module of {type(pl_module).__name__}; its children are: "
            f"{', '.join(tree.children('')) or 'none'}"
        )
    return tree.modules[root]


def is_compiled_as_a_whole(pl_module: pl.LightningModule) -> bool:
    """Whether the LightningModule itself was given to ``torch.compile``."""
    return getattr(pl_module, "_compiler_ctx", None) is not None


def graphs_of_module(pl_module: pl.LightningModule) -> Mapping[nn.Module, nn.Module]:
    """The modules that run inside of a compiled graph, see `graphs_of`."""
    return graphs_of(pl_module, is_compiled_as_a_whole(pl_module))
