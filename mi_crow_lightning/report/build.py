"""Building a run's report from its hooks, its Trainer and its model, when the run starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts
from mi_crow_lightning.hooks.compiled.rules import graph_refusals
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.loggers.scalar_choice import Scalars, resolve_scalars
from mi_crow_lightning.report import model_features, trainer_features
from mi_crow_lightning.report.feature import Feature
from mi_crow_lightning.report.plans import hook_plans, hooked_layers
from mi_crow_lightning.report.run_report import RunReport
from mi_crow_lightning.report.statistic_forms import statistic_forms
from mi_crow_lightning.report.tag_count import count_tags, hides_readings

__all__ = ["CallbackArguments", "build_report"]


@dataclass(frozen=True)
class CallbackArguments:
    """The arguments of a HookCallback that a report depends on."""

    hooks: Sequence[Hook]
    root: str | None
    log_every_n_steps: int | None
    scalars: Scalars
    per_dataloader: bool


def build_report(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    arguments: CallbackArguments,
    layers: Layers,
    refused: Iterable[Exception] = (),
    refused_hooks: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> RunReport:
    """Return the report of a run.

    Args:
        trainer: the Trainer, in one of its ``on_*_start`` events.
        pl_module: its LightningModule.
        arguments: those of the callback.
        layers: the registry that holds the callback's hooks.
        refused: why the run as a whole is refused.
        refused_hooks: why single hooks could not be registered, by their IDs.
        dry_run: whether nothing is attached.
    """
    every, stages = (
        trainer_facts.log_interval(trainer, arguments.log_every_n_steps),
        trainer_facts.stages_of_run(trainer),
    )
    return RunReport(
        run=trainer_facts.name_of_run(trainer),
        dry_run=dry_run,
        hooks=hook_plans(arguments.hooks, layers, every, stages, refused_hooks),
        layers=hooked_layers(layers),
        features=_features(trainer, pl_module, arguments, layers),
        refused=tuple(map(str, refused)),
    )


def _features(
    trainer: pl.Trainer, pl_module: pl.LightningModule, arguments: CallbackArguments, layers: Layers
) -> tuple[Feature, ...]:
    apart = trainer_features.dataloaders_apart(trainer) if arguments.per_dataloader else 1
    choice = resolve_scalars(arguments.scalars, count_tags(layers, apart))
    if choice.names == "default" and not hides_readings(layers):
        choice = choice._replace(names="all")
    refused_by_graphs = list(graph_refusals(layers, trainer_facts.stages_of_run(trainer)))
    return (
        model_features.compilation(
            pl_module, layers, refused_by_graphs, whole=trainer_facts.is_compiled_as_a_whole(pl_module)
        ),
        trainer_features.strategy(trainer),
        *model_features.replication(pl_module),
        trainer_features.precision(trainer),
        trainer_features.accumulation(trainer),
        model_features.checkpointing(pl_module, trainer_facts.is_fitting(trainer)),
        model_features.adapters(pl_module),
        model_features.quantisation(pl_module),
        model_features.attention_kernels(pl_module),
        *statistic_forms(pl_module.device, layers),
        *trainer_features.dataloaders(trainer, arguments.per_dataloader),
        *trainer_features.loggers(trainer, choice),
    )
