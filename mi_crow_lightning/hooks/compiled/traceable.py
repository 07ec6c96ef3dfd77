"""The hooks that may run inside a graph of ``torch.compile``: traced with the model, or called by the graph."""

from __future__ import annotations

from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook

__all__ = ["why_not_called", "why_not_traceable"]

_WITH_THE_LAYERS_VALUES = ("_hook_fn", "process_activations", "process_activation", "_edited", "modify_activations")
_OVERRIDABLE = (*_WITH_THE_LAYERS_VALUES, "observe", "edit", "change")


def why_not_traceable(hook: Hook) -> str | None:
    """Return why a hook cannot be traced into a graph, or ``None`` if it can."""
    for cls in type(hook).__mro__:
        # A base class cannot vouch for methods that a subclass overrides.
        if "traceable" in vars(cls):
            if cls.__dict__["traceable"]:
                return hook.why_not_traced()
            break
        if any(name in vars(cls) for name in _OVERRIDABLE):
            break
    return f"{type(hook).__name__} is not known to be traceable (its class does not set traceable = True)"


def why_not_called(hook: Hook) -> str | None:
    """Return why a graph cannot call a hook as the Python that it is, or ``None`` if it can."""
    name = type(hook).__name__
    if not isinstance(hook, (Controller, Detector)):
        return f"{name} is neither a Detector nor a Controller, whose methods get the activation"
    for cls in type(hook).__mro__:
        if cls in (Controller, Detector, Hook):
            continue
        overridden = next((method for method in _WITH_THE_LAYERS_VALUES if method in vars(cls)), None)
        if overridden is not None:
            return f"{name} overrides {overridden}, which gets the layer's inputs and output, not the activation alone"
    return None
