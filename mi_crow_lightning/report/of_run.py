"""The report of a run that starts, from its hooks, its Trainer and its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts as facts
from mi_crow_lightning.callback.readings_log import count_tags
from mi_crow_lightning.hooks.compiled.rules import graph_refusals
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.loggers.scalar_choice import resolve_scalars
from mi_crow_lightning.report import model_features, trainer_features
from mi_crow_lightning.report.feature import Feature
from mi_crow_lightning.report.plans import hook_plans, hooked_layers
from mi_crow_lightning.report.run_report import RunReport

__all__ = ["Asked", "report_on"]


@dataclass(frozen=True)
class Asked:
    """What a callback was asked for: its arguments of the same names."""

    hooks: Sequence[Hook]
    root: str | None
    log_every_n_steps: int | None
    scalars: str


def report_on(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    asked: Asked,
    layers: Layers,
    refused: Iterable[Exception] = (),
    refused_hooks: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> RunReport:
    """The report of a run.

    Args:
        trainer: the Trainer, in one of its ``on_*_start`` events.
        pl_module: its LightningModule.
        asked: what the callback was asked for.
        layers: where its hooks are registered.
        refused: why the run as a whole is refused.
        refused_hooks: why, by the ID of hooks that could not be registered.
        dry_run: whether nothing is attached.
    """
    return RunReport(
        run=facts.name_of_run(trainer),
        dry_run=dry_run,
        hooks=hook_plans(
            layers,
            asked.hooks,
            refused_hooks or {},
            facts.log_interval(trainer, asked.log_every_n_steps),
            facts.stages_of_run(trainer),
        ),
        layers=hooked_layers(layers),
        features=_features(trainer, pl_module, asked, layers),
        refused=tuple(map(str, refused)),
    )


def _features(trainer: pl.Trainer, pl_module: pl.LightningModule, asked: Asked, layers: Layers) -> tuple[Feature, ...]:
    return (
        model_features.compilation(
            pl_module, layers.hooked_modules(), [*graph_refusals(layers, facts.stages_of_run(trainer))]
        ),
        trainer_features.strategy(trainer),
        *model_features.replication(pl_module),
        trainer_features.precision(trainer),
        trainer_features.accumulation(trainer),
        model_features.checkpointing(pl_module, facts.is_fitting(trainer)),
        model_features.adapters(pl_module),
        model_features.quantisation(pl_module),
        model_features.attention_kernels(pl_module),
        *trainer_features.loggers(trainer, resolve_scalars(asked.scalars, count_tags(layers))),
    )
