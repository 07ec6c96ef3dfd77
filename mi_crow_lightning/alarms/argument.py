"""The check of the argument ``alarms`` that the callbacks of all Trainers take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mi_crow_lightning._arguments import listed, not_known
from mi_crow_lightning._shown import shown
from mi_crow_lightning.alarms.actions import SwitchOff
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.defaults import default_alarms, default_rules
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.runs.effects_log import QUANTITIES

__all__ = ["check_alarms"]


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
    known = [*QUANTITIES, *(name for _, names in declared for name in names)]
    sections = [f"{prefix}_{name}" for prefix, names in (*declared, ("steering", QUANTITIES)) for name in names]
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
                "action out, or give the alarm to the callback that has them"
            )
        for one in action.controllers or ():
            if one not in controllers:
                error = not_known("controllers", one, controllers)
                raise ValueError(f"the alarm {name!r} switches off what this callback does not have: {error}")
