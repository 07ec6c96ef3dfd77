"""Checks of the arguments that the callbacks of all Trainers take, so that a mistake raises where one is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mi_crow_lightning._arguments import listed, not_known, one_line, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.registry.rules import listed_hooks
from mi_crow_lightning.loggers.scalar_choice import SCALARS, Scalars

__all__ = ["check_history_size", "check_hooks", "check_options", "check_scalars"]


def check_hooks(
    detectors: Sequence[Hook] | Hook | None, controllers: Sequence[Hook] | Hook | None
) -> tuple[list[Hook], list[Hook]]:
    """Return both arguments as lists.

    Raises:
        TypeError: one holds something that is not a hook, or a hook of the other kind.
        ValueError: a hook names no layer, or two hooks have the same ID.
    """
    observing, editing = _listed("detectors", detectors), _listed("controllers", controllers)
    for hook in observing:
        if hook.edits:
            raise TypeError(
                f"detectors holds {shown(hook)}, which may change activations: put it into controllers=[...]"
            )
    for hook in editing:
        if not hook.edits:
            raise TypeError(f"controllers holds {shown(hook)}, which only observes: put it into detectors=[...]")
    ids = Counter(hook.id for hook in (*observing, *editing))
    for hook in (*observing, *editing):
        if hook.layer_signature is None:
            raise ValueError(f"{shown(hook)} names no layer: give layer_signature=, e.g. 'block:*' for every block")
        if ids[hook.id] > 1:
            if not hook._has_given_id:
                raise ValueError(f"{shown(hook)} is given twice, or together with a copy of itself: make a second hook")
            raise ValueError(f"two hooks have the ID {hook.id!r} (or one is given twice): IDs must differ")
    return observing, editing


def _listed(name: str, hooks: Sequence[Hook] | Hook | None) -> list[Hook]:
    return [] if hooks is None else listed_hooks(name, hooks)


def check_options(root: str | None, name: str | None, log_every_n_steps: int | None, token_mask: object) -> None:
    """Refuse wrong values of a callback's arguments of the same names.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it and what it may be.
    """
    if root is not None and not isinstance(root, str):
        raise TypeError(f"root must be the name of a submodule, e.g. 'model', not a {type(root).__name__}")
    if name is not None:
        one_line("name", name)
    if log_every_n_steps is not None:
        whole_number("log_every_n_steps", log_every_n_steps, 1)
    if token_mask is not None and not callable(token_mask):
        raise TypeError(f"token_mask={shown(token_mask)} must be a function from a batch to a mask (B, T)")


def check_scalars(value: Any, detectors: Iterable[Hook]) -> Scalars:
    """Return ``value`` if it is one of `SCALARS`, or a list of names of statistics that the detectors measure.

    Raises:
        TypeError, ValueError: it is something else; the message lists the names there are.
    """
    choosable = [one for one in detectors if isinstance(one, Detector) and one._shown_by_default is not None]
    measured = list(dict.fromkeys(name for one in choosable for name in one.reading_names()))
    if isinstance(value, str) or not isinstance(value, Iterable):
        if isinstance(value, str) and value in SCALARS:
            return value
        error = not_known("scalars", value, SCALARS)
        raise ValueError(f"{error}. For statistics give a list of their names, scalars=['rms']")
    names = listed("scalars", value, "names of statistics", "['rms', 'kurtosis']")
    if not names:
        raise ValueError("scalars=[] names no statistic: scalars='none' shows none")
    for name in names:
        if not isinstance(name, str) or name not in measured:
            if not measured:
                raise ValueError(
                    f"scalars={shown(names)} names statistics, and no detector of this callback is an "
                    "ActivationStatistics, which measures them. Other detectors are always shown in whole"
                )
            raise not_known("scalars", name, measured)
    if len(set(names)) < len(names):
        raise ValueError(f"scalars={shown(names)} has a name twice")
    return tuple(names)


def check_history_size(value: int | None) -> int | None:
    """Return ``value`` if it is a number of rows, or ``None``.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    return whole_number("history_size", value, 1, "None for all numbers of a run, or a whole number")
