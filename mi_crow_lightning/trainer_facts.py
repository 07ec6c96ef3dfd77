"""What hooks need to know of a Lightning Trainer. Its private names are read here and nowhere else."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import nn

from mi_crow_lightning.errors import LayerNotFound, RegistrationError
from mi_crow_lightning.hooks.names import ModuleTree
from mi_crow_lightning.hooks.schedules import Moment, Stage

__all__ = [
    "batches_that_stepped",
    "callbacks_of",
    "find_root",
    "is_fitting",
    "is_running",
    "log_interval",
    "moment_of",
    "refuse_compiled",
    "samples_of_batch",
    "steps_of_run",
    "takes_a_step",
]


def is_fitting(trainer: pl.Trainer) -> bool:
    """Whether the Trainer is in ``fit``; a validation may be a part of that, or run on its own."""
    return trainer.state.fn == TrainerFn.FITTING


def is_running(trainer: pl.Trainer) -> bool:
    """Whether the Trainer is in a run: neither finished nor interrupted."""
    return trainer.state.status == TrainerStatus.RUNNING


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


def refuse_compiled(pl_module: pl.LightningModule, layers: list[nn.Module]) -> None:
    """Refuse to watch what runs inside a compiled graph: hooks that come and go would be ignored there.

    Raises:
        RegistrationError: it names what is compiled.
    """
    tree = ModuleTree(pl_module)
    compiled = "the LightningModule" if getattr(pl_module, "_compiler_ctx", None) is not None else None
    for layer in layers:
        around = [module for module in (*tree.ancestors(layer), layer) if _is_compiled(module, layer)]
        compiled = compiled or (type(around[0]).__name__ if around else None)
    if compiled is not None:
        raise RegistrationError(
            f"{compiled} is compiled, and hooks inside a compiled graph are not supported yet: they would be "
            "ignored. Run without torch.compile, or watch a layer outside of the compiled module."
        )


def _is_compiled(module: nn.Module, layer: nn.Module) -> bool:
    if module._compiled_call_impl is not None:
        return True
    # A hook on the wrapper itself runs outside of the graph.
    return type(module).__name__ == "OptimizedModule" and module is not layer
