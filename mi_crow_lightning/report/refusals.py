"""Why a run cannot take place with its hooks: reasons against the whole run, and against single hooks in a dry run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from torch import Tensor

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._messages import message_of
from mi_crow_lightning.addressing.root import find_root
from mi_crow_lightning.errors import LayerNotFound, MiCrowError, RegistrationError, StrengthMismatch
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.report.hook_refusals import gradient_refusals, hook_refusals

__all__ = [
    "run_refusals",
    "strategy_refusals",
    "strengths_of_no_batch",
    "tensor_parallel_refusal",
    "trial_registration",
]


def run_refusals(
    trainer: pl.Trainer, pl_module: pl.LightningModule, layers: Layers, registries: Sequence[Layers]
) -> list[MiCrowError]:
    """Return the reasons against the whole run, for a report to list them all and its run to raise the first.

    Args:
        trainer: the Trainer.
        pl_module: its LightningModule.
        layers: the registry that holds the callback's hooks.
        registries: those of all HookCallbacks of the Trainer, ``layers`` among them.
    """
    by_trainer = [reason for reason in (tensor_parallel_refusal(trainer), _empty_ranks_refusal(trainer)) if reason]
    by_trainer += strategy_refusals(trainer, layers.get_hooks())
    strengths = [] if trainer_facts.is_fitting(trainer) else strengths_of_no_batch(trainer, layers.get_hooks())
    of_hooks = hook_refusals(pl_module, layers, registries, trainer_facts.stages_of_run(trainer))
    return [*map(RegistrationError, by_trainer), *of_hooks, *strengths]


def tensor_parallel_refusal(trainer: pl.Trainer) -> str | None:
    """Return why hooks are refused if layers are split over processes, ``None`` if they are not."""
    size = trainer_facts.tensor_parallel_size(trainer)
    if size == 1:
        return None
    return (
        f"tensor_parallel_size={size}: each process has all tokens of its group or a part of their features, so "
        "readings would count tokens several times and edits could miss features. Use "
        "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) with fully_shard, or strategy='ddp'."
    )


def _empty_ranks_refusal(trainer: pl.Trainer) -> str | None:
    if not trainer_facts.leaves_out_empty_ranks(trainer):
        return None
    return (
        "allow_zero_length_dataloader_with_multiple_devices=True: Lightning leaves a rank without data out of the "
        "loop, and the others would wait for it to exchange readings. Leave it False, and give each rank a batch, "
        "or an IterableDataset without a length."
    )


def strategy_refusals(trainer: pl.Trainer, hooks: Iterable[Hook]) -> list[str]:
    """Return why detectors of gradients and weights are refused: the strategy does not show what they read."""
    strategy, scales = trainer_facts.partitions_weights(trainer), trainer_facts.scales_losses_itself(trainer)
    partitions = (
        f"{strategy} keeps weights in a separate form, which does not show which layer they are of. Use "
        "ModelParallelStrategy with fully_shard, or strategy='ddp'."
    )
    unknown_factor = (
        "DeepSpeed multiplies the loss by a factor that is not known here, so gradients cannot be unscaled. Train in "
        "bf16, or with another strategy."
    )
    return gradient_refusals(hooks, partitions if strategy is not None else None, unknown_factor if scales else None)


def strengths_of_no_batch(trainer: pl.Trainer, hooks: Iterable[Hook]) -> list[StrengthMismatch]:
    """Return an error for each controller whose strengths, one for each sample, are of no batch of a stage.

    A step may make several rows of a sample, or give some of the batch to the model; so only a number that neither
    divides the size of any batch nor is a multiple of it is certain not to fit. A fit loads its data after its start.
    """
    sizes = {stage: trainer_facts.batch_sizes(trainer, stage) for stage in trainer_facts.stages_of_run(trainer)}
    errors = (_no_batch_fits(hook, sizes) for hook in hooks if hook.edits and hook.enabled)
    return [error for error in errors if error is not None]


def _no_batch_fits(hook: Hook, sizes: Mapping[Stage, Sequence[int] | None]) -> StrengthMismatch | None:
    given = getattr(hook, "strength", None)
    if not isinstance(given, Tensor):
        return None
    for stage, of_stage in sizes.items():
        if of_stage is None or not hook.when().may_be_due_in(stage):
            continue
        if all(max(size, len(given)) % min(size, len(given)) for size in of_stage):
            listed = " or ".join(map(str, dict.fromkeys(of_stage)))
            return StrengthMismatch(
                f"{hook!r}: strength has {len(given)} values, one for each sample, and the batches of {stage.value} "
                f"have {listed}: give one for each sample of a batch, or strength='batch' to read them from it"
            )
    return None


@contextmanager
def trial_registration(
    pl_module: pl.LightningModule, root: str | None, hooks: Sequence[Hook]
) -> Iterator[tuple[Layers, dict[str, str]]]:
    """Register hooks where no layer calls them, and unregister them when the block ends.

    Args:
        pl_module: the LightningModule.
        root: the submodule that layer names are relative to.
        hooks: the hooks.

    Yields:
        The registry with the hooks that it takes, and by ID why it does not take the others.
    """
    layers, no_root = _trial_registry(pl_module, root)
    try:
        yield layers, {hook.id: refused for hook in hooks if (refused := no_root or _hook_refusal(layers, hook))}
    finally:
        layers.unregister_all_hooks()


def _trial_registry(pl_module: pl.LightningModule, root: str | None) -> tuple[Layers, str]:
    """Return a registry, and why it can take no hook: an empty string if it can."""
    try:
        found = find_root(pl_module, root)
    except LayerNotFound as error:
        return Layers(pl_module), str(error)
    return Layers(found, allow_stacking=True, graphs=trainer_facts.graphs_of_module(pl_module)), ""


def _hook_refusal(layers: Layers, hook: Hook) -> str:
    """Register a hook; return the reason if that fails, else an empty string."""
    try:
        layers.register_hook(None, hook, due=False)
    except Exception as error:  # also what a user's prepare() raises
        return f"{type(error).__name__}: {message_of(error)}"
    return ""
