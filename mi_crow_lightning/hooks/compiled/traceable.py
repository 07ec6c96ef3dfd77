"""The hooks that may run inside a graph of ``torch.compile``: those whose class says that it can be traced."""

from __future__ import annotations

from mi_crow_lightning.hooks.hook import Hook

__all__ = ["why_not_traceable"]

_OVERRIDABLE = (
    "_hook_fn",
    "process_activations",
    "process_activation",
    "observe",
    "_edited",
    "modify_activations",
    "edit",
    "change",
)


def why_not_traceable(hook: Hook) -> str | None:
    """Return why a hook cannot run inside a graph, or ``None`` if it can."""
    for cls in type(hook).__mro__:
        # A base class cannot vouch for methods that a subclass overrides.
        if "traceable" in vars(cls):
            if cls.__dict__["traceable"]:
                return hook.why_not_traced()
            break
        if any(name in vars(cls) for name in _OVERRIDABLE):
            break
    return f"{type(hook).__name__} is not known to be traceable (its class does not set traceable = True)"
