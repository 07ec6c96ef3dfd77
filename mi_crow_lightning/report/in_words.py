"""Schedules and choices of tokens in words, for a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from mi_crow_lightning._joined import written
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import AllOf, AnyOf, LoggedSteps, Not, Schedule, When
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.hooks.tokens import Tokens

__all__ = ["ALL_TOKENS", "NO_MASK", "schedule_in_words", "tokens_in_words"]

ALL_TOKENS = "all but padding"
T = TypeVar("T")

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
    return written(when, partial(_pieces, every=every))


def _pieces(when: When, every: int) -> Sequence[When | str]:
    """Return the words for a schedule, and the schedules for which others stand between them."""
    if type(when) is LoggedSteps:
        logged = [f"logged steps of train ({'each' if every == 1 else f'every {every}'})"] if every else []
        return [", ".join([*logged, *(["validate and test"] if when.evaluations else [])]) or "never"]
    if type(when) is Schedule:
        given = {name: value for name, value in vars(when).items() if value is not None}
        return [", ".join(_FIELDS[name](value) for name, value in given.items()) or "always"]
    if isinstance(when, Not):
        return ["not (", when.schedule, ")"]
    if isinstance(when, (AllOf, AnyOf)):
        return _joined(when.schedules, isinstance(when, AllOf), lambda part: _joins_otherwise(part, type(when)))
    return [repr(when)]


def _joins_otherwise(when: When, around: type[When]) -> bool:
    return isinstance(when, (AllOf, AnyOf)) and not isinstance(when, around)


def _joined(parts: Iterable[T], all_of: bool, in_brackets: Callable[[T], bool]) -> list[T | str]:
    pieces: list[T | str] = []
    for part in parts:
        pieces += [", and " if all_of else ", or "] if pieces else []
        pieces += ["(", part, ")"] if in_brackets(part) else [part]
    return pieces


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
    if not hook._called_at_layers:
        return "no position: weights alone"
    tokens = getattr(hook, "tokens", None)
    words = written(tokens, partial(_choice, edits=hook.edits)) if isinstance(tokens, Tokens) else "every position"
    condition = hook.condition if isinstance(hook, TokenController) else None
    return words if condition is None else f"{words}, {_function(condition)}"


def _choice(tokens: Tokens, edits: bool) -> Sequence[Tokens | str]:
    """Return the words for a choice, and the choices for which others stand between them."""
    kind, value = tokens.kind, tokens.value
    if kind == "~":
        return ["not (", value, ")"]
    if kind in ("&", "|"):
        return _joined(value, kind == "&", lambda part: part.kind in ("&", "|") and part.kind != kind)
    if kind == "which":
        return [_named(value, edits)]
    return [_KINDS[kind](value) if kind in _KINDS else repr(tokens)]


def _named(which: str, edits: bool) -> str:
    if edits and which in ("generated", "last"):
        return "what is generated, from the prompt's last token on"
    return _NAMED[which]


_NAMED = {
    "all": ALL_TOKENS,
    "prompt": "the prompt",
    "generated": "what is generated",
    "last": "the last token of each row",
    "ordinary": "all but padding and massive tokens",
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
    "ordinary": "all but padding and tokens from {:g} x the median norm on".format,
}
