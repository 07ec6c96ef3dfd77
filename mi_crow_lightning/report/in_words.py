"""Schedules and choices of tokens in words, for a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import AllOf, AnyOf, LoggedSteps, Not, Schedule, When
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.hooks.tokens import Tokens

__all__ = ["ALL_TOKENS", "NO_MASK", "schedule_in_words", "tokens_in_words"]

ALL_TOKENS = "all but padding"
NO_MASK = "every position (no mask found)"


def schedule_in_words(when: When, every: int) -> str:
    """Return when a hook with this schedule is on.

    Args:
        when: the schedule; its ``repr`` if its class is not one of this package.
        every: steps from one logged step to the next, 0 for never.

    Examples:
        >>> schedule_in_words(Schedule(stages="train", stop_step=100) & ~Schedule(batches=0), every=50)
        'train, before step 100, and not (batch 0)'
    """
    if type(when) is LoggedSteps:
        logged = f"logged steps of train ({'each' if every == 1 else f'every {every}'}), " if every else ""
        return f"{logged}validate and test"
    if type(when) is Schedule:
        given = {name: value for name, value in vars(when).items() if value is not None}
        return ", ".join(_FIELDS[name](value) for name, value in given.items()) or "always"
    if isinstance(when, Not):
        return f"not ({schedule_in_words(when.schedule, every)})"
    if isinstance(when, (AllOf, AnyOf)):
        parts = [_part(schedule, type(when), every) for schedule in when.schedules]
        return (", and " if isinstance(when, AllOf) else ", or ").join(parts)
    return repr(when)


def _part(when: When, around: type[When], every: int) -> str:
    """Return a part of a joined schedule, in brackets if its own parts are joined the other way."""
    words = schedule_in_words(when, every)
    return f"({words})" if isinstance(when, (AllOf, AnyOf)) and not isinstance(when, around) else words


def _indices(one: str, many: str, chosen: range | frozenset[int]) -> str:
    if isinstance(chosen, range) and len(chosen) > 3:
        steps = f" in steps of {chosen.step}" if chosen.step != 1 else ""
        return f"{many} {chosen[0]} to {chosen[-1]}{steps}"
    return _listed(one, many, sorted(chosen))


def _every(one: str, many: str, n: int) -> str:
    return f"each {one}" if n == 1 else f"every {n} {many}"


def _stages(stages: Iterable[Any]) -> str:
    return " and ".join(stage.value for stage in stages)


_FIELDS: dict[str, Callable[[Any], str]] = {
    "stages": _stages,
    "epochs": partial(_indices, "epoch", "epochs"),
    "batches": partial(_indices, "batch", "batches"),
    "every_n_epochs": partial(_every, "epoch", "epochs"),
    "every_n_batches": partial(_every, "batch", "batches"),
    "every_n_steps": partial(_every, "step", "steps"),
    "start_step": "from step {}".format,
    "stop_step": "before step {}".format,
}


def tokens_in_words(hook: Hook) -> str:
    """Return which positions a hook reads or edits, and on which condition.

    A hook without ``tokens`` gets every position and chooses for itself.

    Examples:
        >>> from mi_crow_lightning.hooks import FunctionController
        >>> tokens_in_words(FunctionController(0, abs, tokens=Tokens("prompt") & ~Tokens(ids=[2])))
        'the prompt, and not (token ID 2)'
    """
    tokens = getattr(hook, "tokens", None)
    words = _choice(tokens, hook.edits) if isinstance(tokens, Tokens) else "every position"
    condition = hook.condition if isinstance(hook, TokenController) else None
    return words if condition is None else f"{words}, {_function(condition)}"


def _choice(tokens: Tokens, edits: bool) -> str:
    kind, value = tokens.kind, tokens.value
    if kind == "~":
        return f"not ({_choice(value, edits)})"
    if kind in ("&", "|"):
        return (", and " if kind == "&" else ", or ").join(_side(part, kind, edits) for part in value)
    if kind == "which":
        return _named(value, edits)
    return _KINDS[kind](value) if kind in _KINDS else repr(tokens)


def _side(tokens: Tokens, around: str, edits: bool) -> str:
    words = _choice(tokens, edits)
    return f"({words})" if tokens.kind in ("&", "|") and tokens.kind != around else words


def _named(which: str, edits: bool) -> str:
    if edits and which in ("generated", "last"):
        return "what is generated, from the prompt's last token on"
    return _NAMED[which]


_NAMED = {
    "all": ALL_TOKENS,
    "prompt": "the prompt",
    "generated": "what is generated",
    "last": "the last token of each row",
}


def _window(window: tuple[int | None, int | None]) -> str:
    start, stop = window
    ends = [f"from {start} on"] if start is not None else []
    ends += [f"before {stop}"] if stop is not None else []
    return f"positions {', '.join(ends)}" if ends else _NAMED["all"]


def _function(function: object) -> str:
    return f"where {getattr(function, '__name__', type(function).__name__)} says"


def _listed(one: str, many: str, values: Collection[object]) -> str:
    first = ", ".join(map(str, list(values)[:8]))
    return f"{one if len(values) == 1 else many} {first}{', ...' if len(values) > 8 else ''}"


_KINDS: dict[str, Callable[[Any], str]] = {
    "positions": partial(_listed, "position", "positions"),
    "window": _window,
    "ids": partial(_listed, "token ID", "token IDs"),
    "where": _function,
}
