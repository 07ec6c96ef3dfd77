"""The arguments of HookCallback: checked before a run is paid for, and named in checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.loggers.scalar_choice import SCALARS

if TYPE_CHECKING:
    from mi_crow_lightning.callback.hook_callback import HookCallback

__all__ = [
    "check_flag",
    "check_hooks",
    "check_options",
    "describe",
    "names_among",
    "readable_names",
    "state_key_among",
    "state_keys",
    "unique_state_key",
]

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
            if not hook.has_given_id:
                raise ValueError(f"{hook!r} is given twice, or beside a copy of it: make a second hook")
            raise ValueError(f"two hooks have the ID {hook.id!r} (or one is given twice): IDs must differ")
    return observing, editing


def _listed(name: str, hooks: Sequence[Hook] | Hook | None) -> list[Hook]:
    if hooks is not None and not isinstance(hooks, (Hook, Iterable)):
        raise TypeError(f"{name}={hooks!r} must be a hook or several, not a {type(hooks).__name__}")
    listed = [] if hooks is None else [hooks] if isinstance(hooks, Hook) else list(hooks)
    for hook in listed:
        if not isinstance(hook, Hook):
            hint = f": give an instance, {hook.__name__}(...)" if isinstance(hook, type) else ""
            raise TypeError(f"{name} holds {hook!r}, which is a {type(hook).__name__} and no hook{hint}")
        if "id" not in vars(hook):
            raise TypeError(f"{name}: {type(hook).__name__}.__init__ must call super().__init__(...)")
    return listed


def check_options(
    root: str | None, name: str | None, log_every_n_steps: int | None, scalars: str, token_mask: object
) -> None:
    """Refuse what the arguments of the same names cannot be.

    Raises:
        TypeError, ValueError: it says which, and what it may be.
    """
    if root is not None and not isinstance(root, str):
        raise TypeError(f"root must be the name of a submodule, e.g. 'model', not a {type(root).__name__}")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a string")
    if log_every_n_steps is not None:
        _check_interval(log_every_n_steps)
    if scalars not in SCALARS:
        raise not_known("scalars", scalars, SCALARS)
    if token_mask is not None and not callable(token_mask):
        raise TypeError(f"token_mask={token_mask!r} must be a function from a batch to a mask (B, T)")


def _check_interval(log_every_n_steps: int) -> None:
    if isinstance(log_every_n_steps, bool) or not isinstance(log_every_n_steps, int) or log_every_n_steps < 1:
        raise ValueError(f"log_every_n_steps={log_every_n_steps!r} must be a whole number, 1 or more")


def check_flag(name: str, value: bool) -> bool:
    """``value`` if it is a bool; a string such as ``"no"`` would count as true.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
    return value


def state_keys(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """A name for each hook that is the same when the script runs again: its ID if given, else its order."""
    return {hook.id if hook.has_given_id else f"{i}:{type(hook).__name__}": hook for i, hook in enumerate(hooks)}


def readable_names(hooks: Sequence[Hook]) -> list[str]:
    """What hooks are called in tags: their ID if given, else their class; the second of a name gets a number.

    Examples:
        >>> from mi_crow_lightning import ScaleController
        >>> readable_names([ScaleController(0, 2), ScaleController(1, 2), ScaleController(2, 2, hook_id="half")])
        ['ScaleController', 'ScaleController-2', 'half']
    """
    names: dict[int, str] = {}
    for index, hook in sorted(enumerate(hooks), key=lambda one: not one[1].has_given_id):  # given ones stay as they are
        base = hook.id if hook.has_given_id else type(hook).__name__
        tries = (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))
        names[index] = next(name for name in tries if name not in names.values())
    return [names[index] for index in range(len(hooks))]


def names_among(callback: HookCallback, present: Sequence[HookCallback]) -> dict[str, str]:
    """What the callback's controllers are called in the logs of its Trainer, by ID.

    Args:
        callback: one of the Trainer's, or one that another callback passes the Trainer's events on to.
        present: the Trainer's callbacks.
    """
    callbacks = present if callback in present else [*present, callback]
    hooks = [(one, hook) for one in callbacks for hook in one.controllers]
    names = readable_names([hook for _, hook in hooks])
    return {hook.id: name for (one, hook), name in zip(hooks, names, strict=True) if one is callback}


def describe(hooks: Sequence[Hook], name: str | None) -> str:
    """What tells a callback from others in checkpoints: its name, else what its hooks are."""
    what = name or ", ".join(f"{type(hook).__name__}({hook.layer_signature!r})" for hook in hooks)
    return f"HookCallback[{what}]"


def unique_state_key(callback: HookCallback, description: str, name: str | None) -> str:
    """A state key for a Trainer to accept the callback with: callbacks alive without a name have distinct ones."""
    key, number = description, 2
    while name is None and key in _live:
        key, number = f"{description}#{number}", number + 1
    if name is None:
        _live[key] = callback
    return key


def state_key_among(callback: HookCallback, present: Sequence[HookCallback]) -> str:
    """The callback's key in the checkpoints of one Trainer, the same when the script runs again.

    Args:
        callback: the callback.
        present: those of the Trainer; of several with one description each but the first has a number.
    """
    if callback not in present:  # another callback passes the Trainer's events on
        return callback.state_key
    number = 1 + [other for other in present if other.description == callback.description].index(callback)
    return callback.description if number == 1 else f"{callback.description}#{number}"
