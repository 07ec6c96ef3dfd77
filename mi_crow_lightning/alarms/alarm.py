"""The alarm: a rule and its actions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mi_crow_lightning._arguments import listed, not_known, one_line, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.alarms.actions import Action, LogEvent, SaveCheckpoint, Stop, SwitchOff, Warn
from mi_crow_lightning.alarms.rule import Rule
from mi_crow_lightning.alarms.snapshot import Snapshot
from mi_crow_lightning.choices import ActionName

__all__ = ["ACTIONS", "Alarm"]

ACTIONS: dict[ActionName, type[Action]] = {
    "log": LogEvent,
    "warn": Warn,
    "checkpoint": SaveCheckpoint,
    "switch off": SwitchOff,
    "stop": Stop,
    "snapshot": Snapshot,
}
"""The actions by name, with the arguments that they have by default."""


class Alarm:
    """A rule, and what is done when it fires.

    Whatever the actions are, an event on the run's time axis says that it fired.

    Args:
        rule: the rule.
        actions: an action, or several in this order: `Action` objects or names, ``"log"``, ``"warn"``,
            ``"checkpoint"``, ``"switch off"``, ``"stop"``, ``"snapshot"``.
        name: the alarm's name in events; the class of the rule if left out.
        most: the most times that it fires in one run. What fired in a stage stays quiet there until it was in order
            again.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.

    Examples:
        >>> from mi_crow_lightning.alarms import Jump
        >>> Alarm(Jump("rms"), ["warn", "stop"]).name
        'Jump'
    """

    def __init__(
        self,
        rule: Rule,
        actions: Action | ActionName | Sequence[Action | ActionName] = "warn",
        name: str | None = None,
        most: int = 5,
    ) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule={shown(rule)} must be a rule, such as NonFinite() or Threshold('rms', above=10)")
        self.rule = rule
        self.actions = _actions(actions)
        self.name = one_line("name", name) if name is not None else type(rule).__name__
        self.most = whole_number("most", most, 1)

    def __repr__(self) -> str:
        return f"Alarm({self.rule!r}, {self.actions!r})"


def _actions(value: Any) -> list[Action]:
    lone = isinstance(value, (str, Action))
    given: Iterable[Any] = [value] if lone else listed("actions", value, "actions or names", "['warn', 'stop']")
    made = []
    for one in given:
        if isinstance(one, str):
            if one not in ACTIONS:
                raise not_known("actions", one, ACTIONS)
            one = ACTIONS[one]()
        if not isinstance(one, Action):
            raise TypeError(f"actions={shown(value)} holds {shown(one)}: give actions, or names such as 'warn'")
        made.append(one)
    if not made:
        raise ValueError("actions=[] does nothing: give 'log' for an alarm that only leaves its event")
    return made
