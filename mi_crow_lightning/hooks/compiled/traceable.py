"""Which hooks may run inside of a graph of ``torch.compile``: those whose class says that it can be traced."""

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
    """Why a hook cannot run inside of a graph; ``None`` where it can."""
    for cls in type(hook).__mro__:
        # What a subclass does on top was not what its base class spoke of.
        if "traceable" in vars(cls):
            if cls.__dict__["traceable"]:
                return hook.why_not_traced()
            break
        if any(name in vars(cls) for name in _OVERRIDABLE):
            break
    return f"what {type(hook).__name__} does is not known to be traceable (it does not set traceable = True)"
