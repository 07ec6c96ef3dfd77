"""The report of a run of ``transformers.Trainer``: what it watches and steers, and whether that works with the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from mi_crow_lightning.errors import MiCrowError, RegistrationError
from mi_crow_lightning.hf_trainer import facts
from mi_crow_lightning.hf_trainer.loggers import is_tensorboard, reporting_callbacks
from mi_crow_lightning.hooks.compiled.rules import graph_refusals
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.rules import replicates
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.loggers.scalar_choice import Choice, Scalars, resolve_scalars
from mi_crow_lightning.report import model_features
from mi_crow_lightning.report.feature import Feature, Support
from mi_crow_lightning.report.hook_refusals import gradient_refusals, hook_refusals
from mi_crow_lightning.report.logger_features import logger_feature
from mi_crow_lightning.report.plans import hook_plans, hooked_layers
from mi_crow_lightning.report.run_report import RunReport
from mi_crow_lightning.report.statistic_forms import statistic_forms
from mi_crow_lightning.report.tag_count import count_tags, hides_readings

__all__ = ["refusals_of_run", "report_of_run"]

_DDP = ("MULTI_CPU", "MULTI_GPU")  # accelerate's names of what runs DDP


def report_of_run(
    who: str,
    method: str,
    trainer: Any,
    called: nn.Module,
    hooks: Sequence[Hook],
    layers: Layers,
    stages: Sequence[Stage],
    own_interval: int | None,
    scalars: Scalars,
    refused: Iterable[Exception],
) -> RunReport:
    """Return the report of a run.

    Args:
        who: the callback's class.
        method: the Trainer's method.
        trainer: the Trainer, when the run begins.
        called: the module that it calls: the model, or what is wrapped around it.
        hooks: the callback's hooks.
        layers: the registry that holds them.
        stages: those that the run may come to.
        own_interval: the callback's ``log_every_n_steps``.
        scalars: the callback's argument.
        refused: why the run is refused.
    """
    return RunReport(
        run=method,
        dry_run=False,
        hooks=hook_plans(hooks, layers, facts.log_interval(trainer, own_interval), stages),
        layers=hooked_layers(layers),
        features=_features(trainer, called, layers, stages, scalars),
        refused=tuple(map(str, refused)),
        callback=who,
    )


def refusals_of_run(
    trainer: Any,
    called: nn.Module,
    layers: Layers,
    registries: Sequence[Layers],
    stages: Sequence[Stage],
    asks_before_step: bool = False,
) -> list[MiCrowError]:
    """Return the reasons against a run, for a report to list them all and its run to raise the first.

    Args:
        trainer: the Trainer.
        called: see `report_of_run`.
        layers: the registry that holds the callback's hooks.
        registries: those of all callbacks of the Trainer, ``layers`` among them.
        stages: see `report_of_run`.
        asks_before_step: whether an alarm is asked before each optimizer step.
    """
    kind = _kind(trainer)
    partitions = (
        f"{kind} keeps weights in a separate form, which does not show which layer they are of. Use DDP (torchrun)."
    )
    scales = (
        "DeepSpeed multiplies the loss by a factor that is not known here, so gradients cannot be unscaled. Train in "
        "bf16, or with DDP (torchrun)."
    )
    reasons = gradient_refusals(
        layers.get_hooks(),
        partitions if kind in ("FSDP", "DEEPSPEED") else None,
        scales if kind == "DEEPSPEED" and trainer.args.fp16 else None,
    )
    if _is_replicated(trainer, called):
        reasons.append(
            f"this Trainer runs on {trainer.args.n_gpu} GPUs of one process with nn.DataParallel, which copies the "
            "model for each batch: hooks would be on none of the copies. Start the script with torchrun, or let it see "
            "one GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    steps_within = "DeepSpeed" if kind == "DEEPSPEED" else "LOMO" if "lomo" in str(trainer.args.optim).lower() else ""
    if asks_before_step and steps_within and Stage.TRAIN in stages:
        reasons.append(
            f"{steps_within} changes weights within the backward pass, and alarms on the loss, as NonFinite, are "
            "asked after it: they would come too late. Leave them out, or give them stages='validate'."
        )
    return [*map(RegistrationError, reasons), *hook_refusals(trainer.model, layers, registries, stages)]


def _kind(trainer: Any) -> str:
    """Return accelerate's name of how the Trainer runs: ``"NO"``, ``"MULTI_CPU"``, ``"FSDP"``, ..."""
    return str(trainer.accelerator.distributed_type.value)


def _is_replicated(trainer: Any, called: nn.Module) -> bool:
    wrapper = called if isinstance(called, nn.DataParallel) else None
    return int(trainer.args.n_gpu) > 1 or (wrapper is not None and replicates(wrapper))


def _features(
    trainer: Any, called: nn.Module, layers: Layers, stages: Sequence[Stage], scalars: Scalars
) -> tuple[Feature, ...]:
    model, fitting = trainer.model, Stage.TRAIN in stages
    choice = resolve_scalars(scalars, count_tags(layers))
    if choice.names == "default" and not hides_readings(layers):
        choice = choice._replace(names="all")
    return (
        model_features.compilation(called, layers, list(graph_refusals(layers, stages))),
        _strategy(trainer, called),
        *model_features.replication(called),
        _precision(trainer),
        _accumulation(trainer, fitting),
        model_features.checkpointing(model, fitting, sets_mode=True),
        model_features.adapters(model),
        model_features.quantisation(model),
        model_features.attention_kernels(model),
        *statistic_forms(trainer.args.device, layers),
        *_loggers(trainer, choice),
    )


def _strategy(trainer: Any, called: nn.Module) -> Feature:
    kind, processes = _kind(trainer), int(trainer.args.world_size)
    if _is_replicated(trainer, called):
        return Feature("strategy", "nn.DataParallel", Support.REFUSED)
    if kind == "NO":
        return Feature("strategy", "one process", Support.SUPPORTED)
    value = f"{'DDP' if kind in _DDP else kind}, {processes} process{'es' * (processes > 1)}"
    if kind not in _DDP:
        return Feature("strategy", value, Support.UNTESTED)
    return Feature("strategy", value, Support.SUPPORTED, "readings are those of all processes")


def _precision(trainer: Any) -> Feature:
    if trainer.args.fp16:
        return Feature("precision", "fp16", Support.UNTESTED)
    if trainer.args.bf16:
        return Feature("precision", "bf16", Support.SUPPORTED, "statistics are summed in float32 or better")
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in trainer.model.parameters()}
    return Feature("precision", ", ".join(sorted(dtypes)) or "no weights", Support.SUPPORTED)


def _accumulation(trainer: Any, fitting: bool) -> Feature:
    batches = int(trainer.args.gradient_accumulation_steps)
    if batches == 1 or not fitting:
        return Feature.unused("gradient accumulation")
    note = "a reading covers all batches of its step"
    return Feature("gradient accumulation", f"{batches} batches a step", Support.SUPPORTED, note)


def _loggers(trainer: Any, choice: Choice) -> list[Feature]:
    callbacks = reporting_callbacks(trainer)
    found = [logger_feature(type(one).__name__, choice, is_tensorboard(one)) for one in callbacks]
    return found or [Feature.unused("logger")]
