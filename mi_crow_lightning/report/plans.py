"""The hooks of a run and their layers, as its report has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.sites import Site
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.report.in_words import schedule_in_words, tokens_in_words
from mi_crow_lightning.report.output_shapes import class_at, known_shape_at
from mi_crow_lightning.report.run_report import HookedLayer, HookPlan

__all__ = ["hook_plans", "hooked_layers"]


def hook_plans(
    hooks: Iterable[Hook],
    layers: Layers,
    every: int,
    stages: Collection[Stage],
    refused: Mapping[str, str] | None = None,
) -> tuple[HookPlan, ...]:
    """Return the hooks' parts in a run.

    Args:
        hooks: the hooks.
        layers: the registry that holds them.
        every: the steps from one logged step to the next.
        stages: those that the run may come to.
        refused: why single hooks could not be registered, by their IDs.
    """
    return tuple(_plan(hook, layers, refused or {}, every, stages) for hook in hooks)


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


def hooked_layers(layers: Layers) -> tuple[HookedLayer, ...]:
    """Return the layers that have hooks, in the model's order."""
    sites: dict[str, list[Site]] = {}
    for hook in layers.get_hooks():
        for site in layers.sites(hook):
            sites.setdefault(site.match.name, []).append(site)
    places = {name: place for place, name in enumerate(layers.list_layers())}

    def place_of(at_layer: list[Site]) -> tuple[int, int]:
        match = at_layer[0].match
        return places.get(match.module_name, len(places)), match.head_index

    return tuple(map(_hooked_layer, sorted(sites.values(), key=place_of)))


def _hooked_layer(sites: list[Site]) -> HookedLayer:
    match = sites[0].match
    in_order = sorted(sites, key=lambda site: (site.hook.hook_type is HookType.FORWARD, site.order))
    return HookedLayer(
        name=match.name,
        index=match.index,
        module=class_at(match),
        hooks=tuple(_label(site.hook) for site in in_order),
        output_shape=known_shape_at(match),
        stack=match.stack,
    )


def _label(hook: Hook) -> str:
    kind = hook._class_name
    return f"{kind} {hook.id!r}" if hook._has_given_id else kind
