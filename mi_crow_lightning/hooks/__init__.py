"""Hooks on the layers of any torch module: watch activations, or change them.

=========================  ===========================================================================
`attached`                 puts hooks on a model for the length of a ``with`` block
`Layers`                   the registry: put hooks on layers, switch them, take them off
`Detector`                 a hook that observes: override ``observe(x, ctx)``
`Controller`               a hook that edits: override ``edit(x, ctx)``
`Hook`, `HookType`         what both are; for everything else override ``_hook_fn``
`LayerActivationDetector`  keeps activations
`ActivationStatistics`     streams mean, std, ... and a histogram of activations
`ProjectionDetector`       streams projections on directions; may be a condition for edits
`SteeringController`       adds a vector to activations at chosen tokens
`AblationController`       takes a direction, or a subspace, out
`ClampController`          sets, or limits, how far they lie along a direction
`ScaleController`          multiplies them by a factor
`PatchController`          replaces them by stored ones
`FunctionController`       applies a function to them
`TokenController`          the base of these: a controller of your own overrides ``change``
`VectorController`         ... the base of those that take a vector, one for all layers or one for each
`Schedule`, `Tokens`       when a hook is on, and at which positions
=========================  ===========================================================================

::

    with attached(model, [detector, controller]):
        model(**batch)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.errors import HookError
    from mi_crow_lightning.hooks.attaching import attached
    from mi_crow_lightning.hooks.context import HookContext
    from mi_crow_lightning.hooks.controller import Controller
    from mi_crow_lightning.hooks.controllers.ablation import AblationController
    from mi_crow_lightning.hooks.controllers.clamp import ClampController
    from mi_crow_lightning.hooks.controllers.function import FunctionController
    from mi_crow_lightning.hooks.controllers.patch import PatchController
    from mi_crow_lightning.hooks.controllers.scale import ScaleController
    from mi_crow_lightning.hooks.controllers.steering import SteeringController
    from mi_crow_lightning.hooks.detector import Detector
    from mi_crow_lightning.hooks.detectors.activation_statistics import ActivationStatistics
    from mi_crow_lightning.hooks.detectors.layer_activation import LayerActivationDetector
    from mi_crow_lightning.hooks.detectors.projection import ProjectionDetector
    from mi_crow_lightning.hooks.hook import Hook
    from mi_crow_lightning.hooks.hook_type import HookType
    from mi_crow_lightning.hooks.layers import Layers
    from mi_crow_lightning.hooks.reading import Reading
    from mi_crow_lightning.hooks.schedules import AllOf, AnyOf, LoggedSteps, Moment, Not, Schedule, Stage
    from mi_crow_lightning.hooks.token_controller import TokenController
    from mi_crow_lightning.hooks.tokens import Tokens
    from mi_crow_lightning.hooks.vector_controller import VectorController

_HOOKS = "mi_crow_lightning.hooks"
_SOURCES = {
    **dict.fromkeys(["AllOf", "AnyOf", "LoggedSteps", "Moment", "Not", "Schedule", "Stage"], f"{_HOOKS}.schedules"),
    "ActivationStatistics": f"{_HOOKS}.detectors.activation_statistics",
    "Controller": f"{_HOOKS}.controller",
    "Detector": f"{_HOOKS}.detector",
    "FunctionController": f"{_HOOKS}.controllers.function",
    "Hook": f"{_HOOKS}.hook",
    "HookContext": f"{_HOOKS}.context",
    "HookError": "mi_crow_lightning.errors",
    "HookType": f"{_HOOKS}.hook_type",
    "LayerActivationDetector": f"{_HOOKS}.detectors.layer_activation",
    "Layers": f"{_HOOKS}.layers",
    "Reading": f"{_HOOKS}.reading",
    "SteeringController": f"{_HOOKS}.controllers.steering",
    "AblationController": f"{_HOOKS}.controllers.ablation",
    "ClampController": f"{_HOOKS}.controllers.clamp",
    "PatchController": f"{_HOOKS}.controllers.patch",
    "ScaleController": f"{_HOOKS}.controllers.scale",
    "ProjectionDetector": f"{_HOOKS}.detectors.projection",
    "TokenController": f"{_HOOKS}.token_controller",
    "Tokens": f"{_HOOKS}.tokens",
    "VectorController": f"{_HOOKS}.vector_controller",
    "attached": f"{_HOOKS}.attaching",
}

__all__ = [
    "AblationController",
    "ActivationStatistics",
    "AllOf",
    "AnyOf",
    "ClampController",
    "Controller",
    "Detector",
    "FunctionController",
    "Hook",
    "HookContext",
    "HookError",
    "HookType",
    "LayerActivationDetector",
    "Layers",
    "LoggedSteps",
    "Moment",
    "Not",
    "PatchController",
    "ProjectionDetector",
    "Reading",
    "ScaleController",
    "Schedule",
    "Stage",
    "SteeringController",
    "TokenController",
    "Tokens",
    "VectorController",
    "attached",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
