"""Hooks that go on or off in a run, as a user would mark it: the changes, and not the rhythm of a schedule.

A hook with ``every_n_steps=10`` is on all the time in this sense, as is a detector that is due at logged steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mi_crow_lightning._joined import folded
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.schedules import AllOf, AnyOf, LoggedSteps, Moment, Not, Schedule, When
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.report.in_words import schedule_in_words

__all__ = ["HookSwitches", "Switched", "phase_of"]

_MOST = 20  # changes of one hook by its schedule: one with more is a rhythm


class Switched(NamedTuple):
    """A change of one hook.

    Attributes:
        kind: ``"switch"`` or ``"strength"``.
        hook: the hook.
        text: what changed.
    """

    kind: str
    hook: Hook
    text: str


class HookSwitches:
    """The switches, phases and strengths of the hooks of one run, as they were in the batch before.

    Args:
        every: the steps from one logged step to the next, for the words.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._enabled: dict[str, bool] = {}
        self._on: dict[tuple[str, str], bool] = {}  # by hook and stage
        self._strengths: dict[str, float] = {}
        self._changes: Counter[str] = Counter()

    def changes(self, hooks: Iterable[Hook], layers: Layers) -> Iterator[Switched]:
        """Yield what changed since the last batch, in the batch that began.

        Args:
            hooks: those on the model.
            layers: the registry that holds them.
        """
        moment = layers.running.moment
        assert moment is not None, "a batch of a Trainer has a moment"
        for hook in hooks:
            enabled = hook.enabled
            flipped = self._enabled.setdefault(hook.id, enabled) is not enabled
            if flipped:
                self._enabled[hook.id] = enabled
                yield Switched("switch", hook, _said(hook, enabled))
            if hook.schedule is not None and enabled:
                yield from self._by_schedule(hook, hook.schedule, moment, layers, flipped)
            strength = hook._strengths.number if isinstance(hook, TokenController) else None
            if strength is not None and self._strengths.setdefault(hook.id, strength) != strength:
                before, self._strengths[hook.id] = self._strengths[hook.id], strength
                yield from self._counted(hook, "strength", f"strength {before:g} -> {strength:g}")

    def _by_schedule(
        self, hook: Hook, schedule: When, moment: Moment, layers: Layers, flipped: bool
    ) -> Iterator[Switched]:
        place = hook.id, moment.stage.value
        phase = phase_of(schedule, moment)
        # Another one's kind of schedule may keep count of when it is asked, so it is not asked again.
        on = layers.is_attached(hook) if phase is None and not _is_ours(schedule) else phase is not False
        before, self._on[place] = self._on.get(place, on), on
        if on is not before and not flipped:
            words = shortened(schedule_in_words(schedule, self._every))
            yield from self._counted(hook, "switch", f"{'on' if on else 'off'}, by its schedule: {words}")

    def _counted(self, hook: Hook, kind: str, text: str) -> Iterator[Switched]:
        self._changes[hook.id] += 1
        if self._changes[hook.id] < _MOST:
            yield Switched(kind, hook, text)
        elif self._changes[hook.id] == _MOST:
            yield Switched(kind, hook, f"{text}; it changes often: later changes are not marked")


def phase_of(schedule: When, moment: Moment) -> bool | None:
    """Return whether this part of the run is one in which a schedule is due: in none of its batches, in some or in all.

    Returns:
        ``False`` for none, ``True`` for all, ``None`` for some, and for a schedule of another kind.

    Examples:
        >>> from mi_crow_lightning.hooks.schedules import Stage
        >>> late = Schedule(start_step=4, every_n_steps=2)
        >>> [phase_of(late, Moment(Stage.TRAIN, step=step)) for step in (3, 4, 5)]
        [False, None, None]
    """
    if type(schedule) is Schedule:  # most are
        return _phase(schedule, [], moment)
    return folded(schedule, _parts_of, lambda one, parts: _phase(one, parts, moment))


def _parts_of(schedule: When) -> tuple[When, ...]:
    return schedule.schedules if type(schedule) in (AllOf, AnyOf, Not) else ()  # type: ignore[attr-defined]


def _phase(schedule: When, parts: list[bool | None], moment: Moment) -> bool | None:
    if isinstance(schedule, Not) and parts:
        return None if parts[0] is None else not parts[0]
    if parts:
        decides = isinstance(schedule, AnyOf)  # one part that is due is enough, or one that is not
        if decides in parts:
            return decides
        return None if None in parts else not decides
    if type(schedule) is not Schedule:
        return None
    if not schedule._covers(moment):
        return False
    return None if schedule._has_rhythm() else True


def _is_ours(schedule: When) -> bool:
    return type(schedule) in (Schedule, LoggedSteps, AllOf, AnyOf, Not)


def _said(hook: Hook, enabled: bool) -> str:
    if enabled:
        return "on, by enable()"
    return "off, because it failed" if hook._is_off_by_failure else "off, by disable()"
