"""Checks of HookCallback's arguments, so that a mistake raises where the callback is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mi_crow_lightning._arguments import check_flag, listed, not_known, one_line, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.alarms.actions import SwitchOff
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.defaults import default_alarms, default_rules
from mi_crow_lightning.figures.axes import check_matplotlib
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.registry.rules import listed_hooks
from mi_crow_lightning.loggers.scalar_choice import SCALARS, Scalars

__all__ = [
    "check_alarms",
    "check_figures",
    "check_history_size",
    "check_hooks",
    "check_monitor",
    "check_options",
    "check_per_dataloader",
    "check_prog_bar",
    "check_scalars",
]

_HISTOGRAMS = ("histogram", "channel_rms")  # readings that a heatmap cannot show
_CHANGES = ("tokens", "fired", "mean_ratio", "max_ratio")  # readings of what controllers changed


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
    """Refuse wrong values of HookCallback's arguments of the same names.

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


def check_alarms(value: Any, hooks: Iterable[Hook]) -> list[Alarm]:
    """Return ``value`` as a list of alarms; ``"default"`` for `default_alarms`.

    Raises:
        TypeError, ValueError: it is something else, or a rule needs a reading that no detector gives, or an action a
            controller that is not among the hooks.
    """
    if isinstance(value, str):
        if value != "default":
            raise not_known("alarms", value, ["default"])
        return default_alarms()
    alarms = [value] if isinstance(value, Alarm) else listed("alarms", value, "alarms", "[Alarm(NonFinite(), 'stop')]")
    for alarm in alarms:
        if not isinstance(alarm, Alarm):
            raise TypeError(f"alarms={shown(value)} holds {shown(alarm)}: give Alarm(rule, actions)")
    if not alarms:
        return alarms
    hooks = list(hooks)
    _check_switches(alarms, [hook.id for hook in hooks if hook.edits])
    declared = [(hook.tag_prefix, hook.reading_names()) for hook in hooks if isinstance(hook, Detector)]
    known = [*_CHANGES, *(name for _, names in declared for name in names)]
    sections = [f"{prefix}_{name}" for prefix, names in (*declared, ("steering", _CHANGES)) for name in names]
    defaults = {repr(rule) for rule in default_rules().values()}
    for alarm in alarms if all(names for _, names in declared) else ():
        if repr(alarm.rule) not in defaults and (missed := alarm.rule.misses(known, sections)) is not None:
            given = [f"{section}/*" for section in sections] if "/" in missed else known
            raise ValueError(
                f"{shown(alarm)} needs the reading {missed!r}, and no detector of this callback gives it. They give: "
                f"{', '.join(dict.fromkeys(given))}, and alarms add 'loss'"
            )
    return alarms


def _check_switches(alarms: Iterable[Alarm], controllers: Sequence[str]) -> None:
    """Refuse an alarm that would switch off a controller which is not there."""
    switches = [(alarm.name, action) for alarm in alarms for action in alarm.actions if isinstance(action, SwitchOff)]
    for name, action in switches:
        if not controllers:
            raise ValueError(
                f"the alarm {name!r} has the action 'switch off', and this callback has no controllers: leave the "
                "action out, or give the alarm to the HookCallback that has them"
            )
        for one in action.controllers or ():
            if one not in controllers:
                error = not_known("controllers", one, controllers)
                raise ValueError(f"the alarm {name!r} switches off what this callback does not have: {error}")


def check_monitor(value: Any) -> tuple[str, ...]:
    """Return ``value`` as a tuple if it holds tags, or patterns of tags.

    Raises:
        TypeError, ValueError: it is something else.
    """
    names = listed("monitor", value, "tags", "['activations_rms/*']")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"monitor={shown(names)} must hold tags, or patterns of tags such as 'activations_rms/*'")
    return tuple(names)


def check_per_dataloader(value: bool, detectors: Iterable[Hook]) -> bool:
    """Return ``value`` if it is a bool and, where it is true, every detector can be read for each dataloader.

    Raises:
        TypeError: it is not a bool.
        ValueError: a detector's reading is of a whole stage.
    """
    whole = next((one for one in detectors if isinstance(one, Detector) and one._ends_stage), None)
    if check_flag("per_dataloader", value) and whole is not None:
        raise ValueError(
            f"per_dataloader=True reads detectors after each dataloader, and {whole!r} gives one result for all "
            "dataloaders of a stage: put it into another HookCallback, without per_dataloader"
        )
    return value


def check_figures(value: bool | Sequence[str], hooks: Iterable[Hook]) -> bool | list[str]:
    """Return ``value`` if it says which heatmaps are logged, and they can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: it is neither a bool nor a list of names.
        ValueError: the hooks read no statistic of a name.
    """
    if isinstance(value, bool):
        chosen: bool | list[str] = value
    else:
        chosen = listed("figures", value, "statistics", "['rms', 'abs_max']")
        _check_statistics("figures", chosen, list(hooks), "True, or names of statistics")
    if chosen:
        check_matplotlib(f"figures={shown(value)}")
    return chosen


def check_prog_bar(value: Sequence[str], hooks: Iterable[Hook]) -> list[str]:
    """Return the names of the readings that the progress bar shows.

    Raises:
        TypeError, ValueError: it is not a list of names, or no hook has a reading of that name.
    """
    names = listed("prog_bar", value, "names of readings", "['rms']")
    if names:
        _check_statistics("prog_bar", names, list(hooks), "names of readings")
    return names


def _check_statistics(argument: str, names: Sequence[object], hooks: Sequence[Hook], forms: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument}={shown(names)} holds {shown(name)}: give {forms}")
    declared = [hook.reading_names() for hook in hooks if isinstance(hook, Detector)]
    known = [name for of_one in declared for name in of_one if name not in _HISTOGRAMS]
    known += _CHANGES if any(hook.edits for hook in hooks) else ()
    if not known or not all(declared):
        return  # a detector need not say what it reads
    for name in names:
        if name not in known:
            raise not_known(argument, name, dict.fromkeys(known))


def check_history_size(value: int | None) -> int | None:
    """Return ``value`` if it is a number of rows, or ``None``.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    return whole_number("history_size", value, 1, "None for all numbers of a run, or a whole number")
