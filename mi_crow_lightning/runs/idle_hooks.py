"""Hooks that were on during a stage and did nothing: their layers never ran, or they changed no activation."""

from __future__ import annotations

from collections.abc import Iterable

from mi_crow_lightning._warned import warn
from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.silent_layers import report_silent_layers
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["check_that_hooks_ran"]


def check_that_hooks_ran(hooks: Iterable[Hook], layers: Layers, effects: Effects, stage: Stage) -> None:
    """Warn of layers that never ran in ``stage``, and of controllers that changed nothing there.

    Args:
        hooks: the hooks that were on in the stage.
        layers: the registry that holds them.
        effects: what they changed.
        stage: the stage that ends.

    Raises:
        NeverFired: no layer of a controller ran.
    """
    on = [(hook, layers.sites(hook)) for hook in hooks]
    with_silent = [(hook, sites, [site for site in sites if not site.ran_in(stage)]) for hook, sites in on]
    for hook, sites, silent in with_silent:
        if len(silent) < len(sites) and isinstance(hook, Controller) and _is_without_effect(hook, effects, stage):
            _warn_of_no_edit(hook, stage)
    report_silent_layers(with_silent, f"stage {stage.value!r}")


def _is_without_effect(hook: Controller, effects: Effects, stage: Stage) -> bool:
    """Return whether a controller changed nothing, though it did not fail and is not one that may be idle."""
    return effects.changed_nothing(hook.id, stage) and not hook._may_be_idle and not hook.error


def _warn_of_no_edit(hook: Hook, stage: Stage) -> None:
    warn(
        f"{hook!r} ran in stage {stage.value!r} and changed nothing: either its tokens chose none, or each edit was "
        "None or equal to the activation, or the activations were not finite. An edit is what edit() returns.",
        NothingSeenWarning,
        stacklevel=4,
    )
