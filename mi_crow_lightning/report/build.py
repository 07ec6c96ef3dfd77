"""Building a run's report from its hooks, its Trainer and its model, when the run starts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts
from mi_crow_lightning.addressing.module_tree import unwrapped
from mi_crow_lightning.hooks.compiled.rules import graph_refusals
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.sites import Site
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.loggers.scalar_choice import Scalars, resolve_scalars
from mi_crow_lightning.report import model_features, trainer_features
from mi_crow_lightning.report.feature import Feature
from mi_crow_lightning.report.in_words import schedule_in_words, tokens_in_words
from mi_crow_lightning.report.output_shapes import known_shape
from mi_crow_lightning.report.run_report import HookedLayer, HookPlan, RunReport
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
        hooks=tuple(_plan(hook, layers, refused_hooks or {}, every, stages) for hook in arguments.hooks),
        layers=_hooked_layers(layers),
        features=_features(trainer, pl_module, arguments, layers),
        refused=tuple(map(str, refused)),
    )


def _plan(hook: Hook, layers: Layers, refused: Mapping[str, str], every: int, stages: Collection[Stage]) -> HookPlan:
    return HookPlan(
        hook=_label(hook),
        edits=hook.edits,
        layer_signature=hook.layer_signature,
        layers=() if hook.id in refused else tuple(site.match.name for site in layers.sites(hook)),
        when=_when(hook, every, stages),
        tokens=tokens_in_words(hook),
        refused=refused.get(hook.id),
    )


def _when(hook: Hook, every: int, stages: Collection[Stage]) -> str:
    when = hook.when()
    words = schedule_in_words(when, every)
    if not hook.enabled:
        return f"disabled (else {words})"
    return words if any(map(when.may_be_due_in, stages)) else f"{words} (not in this run)"


def _hooked_layers(layers: Layers) -> tuple[HookedLayer, ...]:
    """Return the layers that have hooks, in the model's order."""
    sites: dict[str, list[Site]] = {name: [] for name in layers.list_layers()}
    for hook in layers.get_hooks():
        for site in layers.sites(hook):
            sites.setdefault(site.match.name, []).append(site)
    return tuple(_hooked_layer(at_layer) for at_layer in sites.values() if at_layer)


def _hooked_layer(sites: list[Site]) -> HookedLayer:
    match = sites[0].match
    in_order = sorted(sites, key=lambda site: (site.hook.hook_type is HookType.FORWARD, site.order))
    return HookedLayer(
        name=match.name,
        index=match.index,
        module=type(unwrapped(match.module)).__name__,
        hooks=tuple(_label(site.hook) for site in in_order),
        output_shape=known_shape(match.module),
        stack=match.stack,
    )


def _label(hook: Hook) -> str:
    kind = hook._class_name
    return f"{kind} {hook.id!r}" if hook._has_given_id else kind


def _features(
    trainer: pl.Trainer, pl_module: pl.LightningModule, arguments: CallbackArguments, layers: Layers
) -> tuple[Feature, ...]:
    apart = trainer_features.dataloaders_apart(trainer) if arguments.per_dataloader else 1
    choice = resolve_scalars(arguments.scalars, count_tags(layers, apart))
    if choice.names == "default" and not hides_readings(layers):
        choice = choice._replace(names="all")
    refused_by_graphs = list(graph_refusals(layers, trainer_facts.stages_of_run(trainer)))
    return (
        model_features.compilation(pl_module, layers.hooked_modules(), refused_by_graphs),
        trainer_features.strategy(trainer),
        *model_features.replication(pl_module),
        trainer_features.precision(trainer),
        trainer_features.accumulation(trainer),
        model_features.checkpointing(pl_module, trainer_facts.is_fitting(trainer)),
        model_features.adapters(pl_module),
        model_features.quantisation(pl_module),
        model_features.attention_kernels(pl_module),
        *statistic_forms(pl_module, layers),
        *trainer_features.dataloaders(trainer, arguments.per_dataloader),
        *trainer_features.loggers(trainer, choice),
    )
