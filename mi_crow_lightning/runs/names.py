"""The names of callbacks and hooks: in checkpoints, the same when the script runs again; in logs, easy to read."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from weakref import WeakValueDictionary

from mi_crow_lightning._shown import shown
from mi_crow_lightning.hooks.hook import Hook

__all__ = [
    "describe",
    "log_names",
    "readable_names",
    "shown_hooks",
    "state_key_after",
    "state_keys",
    "unique_state_key",
]

_MOST_SHOWN = 3  # hooks in the ``repr`` of a callback

_live: WeakValueDictionary[str, object] = WeakValueDictionary()  # unnamed callbacks by their state keys


def state_keys(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """Return the hooks by their names in checkpoints: the ID of a hook if it was given one, else its place."""
    return {hook.id if hook._has_given_id else f"{i}:{type(hook).__name__}": hook for i, hook in enumerate(hooks)}


def describe(hooks: Sequence[Hook], name: str | None) -> str:
    """Return the state key of a callback before it is numbered: its name, or the classes and layers of its hooks."""
    what = name or ", ".join(f"{type(hook).__name__}({hook.layer_signature!r})" for hook in hooks)
    return f"HookCallback[{what}]"


def unique_state_key(callback: object, description: str, named: bool) -> str:
    """Return a state key that no unnamed callback alive has, because a Trainer refuses two equal ones.

    Args:
        callback: the callback.
        description: from `describe`.
        named: whether the user gave it a name, which is kept.
    """
    if named:
        return description
    tries = (_numbered(description, "#", number) for number in itertools.count(1))
    key = next(key for key in tries if key not in _live)
    _live[key] = callback
    return key


def state_key_after(earlier: Sequence[str], description: str) -> str:
    """Return the state key of a callback in one Trainer.

    Args:
        earlier: the descriptions of the callbacks before it.
        description: its own; it is numbered if it is among them.
    """
    return _numbered(description, "#", 1 + earlier.count(description))


def readable_names(hooks: Sequence[Hook]) -> list[str]:
    """Return what hooks are called in tags: their ID if given, else their class; the second of a name gets a number.

    Examples:
        >>> from mi_crow_lightning import ScaleController
        >>> readable_names([ScaleController(0, 2), ScaleController(1, 2), ScaleController(2, 2, hook_id="half")])
        ['ScaleController', 'ScaleController-2', 'half']
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))  # a number is tried once for all
    for index, hook in sorted(enumerate(hooks), key=lambda one: not one[1]._has_given_id):  # given IDs stay as they are
        base = hook.id if hook._has_given_id else type(hook).__name__
        tries = (_numbered(base, "-", number) for number in numbers[base])
        names[index] = next(name for name in tries if name not in taken)
        taken.add(names[index])
    return [names[index] for index in range(len(hooks))]


def log_names(own: Sequence[Hook], of_trainer: Sequence[Sequence[Hook]]) -> dict[str, str]:
    """Return what the controllers of a callback are called in the logs of its Trainer, by ID.

    Args:
        own: the controllers.
        of_trainer: those of each callback of the Trainer, ``own`` itself among them.
    """
    controllers = [(group, hook) for group in of_trainer for hook in group]
    names = readable_names([hook for _, hook in controllers])
    return {hook.id: name for (group, hook), name in zip(controllers, names, strict=True) if group is own}


def _numbered(name: str, mark: str, number: int) -> str:
    return name if number == 1 else f"{name}{mark}{number}"


def shown_hooks(hooks: Sequence[Hook]) -> str:
    """Return hooks as a list for ``repr``: of many the first and how many more there are, each cut where it is long."""
    first = [shown(hook, 300) for hook in hooks[:_MOST_SHOWN]]
    more = [f"... {len(hooks) - _MOST_SHOWN} more"] if len(hooks) > _MOST_SHOWN else []
    return f"[{', '.join([*first, *more])}]"
