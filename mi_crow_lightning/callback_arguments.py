"""The arguments of HookCallback: checked before a run is paid for, and named in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mi_crow_lightning.hooks.hook import Hook

if TYPE_CHECKING:
    from mi_crow_lightning.callback import HookCallback

__all__ = ["check_hooks", "check_interval", "state_keys", "unique_state_key"]

_live: WeakValueDictionary[str, HookCallback] = WeakValueDictionary()


def check_hooks(
    detectors: Sequence[Hook] | Hook | None, controllers: Sequence[Hook] | Hook | None
) -> tuple[list[Hook], list[Hook]]:
    """Both arguments as lists.

    Raises:
        TypeError: one holds what is no hook, or a hook of the other kind.
        ValueError: a hook names no layer, or two have one ID.
    """
    observing, editing = _listed("detectors", detectors), _listed("controllers", controllers)
    for hook in observing:
        if hook.edits:
            raise TypeError(f"detectors holds {hook!r}, which may change activations: put it into controllers=[...]")
    for hook in editing:
        if not hook.edits:
            raise TypeError(f"controllers holds {hook!r}, which only observes: put it into detectors=[...]")
    ids = [hook.id for hook in (*observing, *editing)]
    for hook in (*observing, *editing):
        if hook.layer_signature is None:
            raise ValueError(f"{hook!r} names no layer: give layer_signature=, e.g. 'block:*' for every block")
        if ids.count(hook.id) > 1:
            raise ValueError(f"two hooks have the ID {hook.id!r} (or one is given twice): IDs must differ")
    return observing, editing


def _listed(name: str, hooks: Sequence[Hook] | Hook | None) -> list[Hook]:
    listed = [] if hooks is None else [hooks] if isinstance(hooks, Hook) else list(hooks)
    for hook in listed:
        if not isinstance(hook, Hook):
            raise TypeError(f"{name} holds {hook!r}, which is a {type(hook).__name__} and no hook")
    return listed


def check_interval(log_every_n_steps: int | None) -> None:
    """Refuse an interval that is no positive whole number.

    Raises:
        ValueError: it is not.
    """
    if log_every_n_steps is None:
        return
    if isinstance(log_every_n_steps, bool) or not isinstance(log_every_n_steps, int) or log_every_n_steps < 1:
        raise ValueError(f"log_every_n_steps={log_every_n_steps!r} must be a whole number, 1 or more")


def state_keys(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """A name for each hook that is the same when the script runs again: its ID if given, else its order."""
    return {hook.id if hook.has_given_id else f"{i}:{type(hook).__name__}": hook for i, hook in enumerate(hooks)}


def unique_state_key(callback: HookCallback, hooks: Sequence[Hook], name: str | None) -> str:
    """The callback's key in checkpoints: its name, else what its hooks are, numbered among equal ones alive."""
    what = name or ", ".join(f"{type(hook).__name__}({hook.layer_signature!r})" for hook in hooks)
    key = f"HookCallback[{what}]"
    if name is None:
        number = 2
        while key in _live:
            key, number = f"HookCallback[{what}]#{number}", number + 1
        _live[key] = callback
    return key
