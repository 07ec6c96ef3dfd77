"""Values of things that are joined with ``&``, ``|`` and ``~``, however deep, without recursion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["folded", "rejoined", "steps_of", "written"]

T = TypeVar("T")
V = TypeVar("V")


def folded(whole: T, parts_of: Callable[[T], Sequence[T]], value_of: Callable[[T, list[V]], V]) -> V:
    """Return the value of something that may have parts, which may have parts.

    Args:
        whole: it.
        parts_of: the parts that something has; none for what is not joined.
        value_of: the value of something, from the values of its parts in order.

    Examples:
        >>> folded([1, [2, 3]], lambda one: one if isinstance(one, list) else [], lambda one, of: sum(of) or one)
        6
    """
    last_to_first: list[tuple[T, int]] = []
    open_: list[T] = [whole]
    while open_:
        one = open_.pop()
        parts = parts_of(one)
        last_to_first.append((one, len(parts)))
        open_.extend(parts)
    values: list[V] = []
    while last_to_first:
        one, count = last_to_first.pop()
        of_parts = values[len(values) - count :]
        del values[len(values) - count :]
        values.append(value_of(one, of_parts))
    return values[0]


def written(whole: T, pieces_of: Callable[[T], Sequence[T | str]]) -> str:
    """Return the text of something, from its pieces in order: text, or parts that have a text themselves.

    Examples:
        >>> written((1, (2, 3)), lambda one: ["(", *one, ")"] if isinstance(one, tuple) else [str(one)])
        '(1(23))'
    """
    found: list[str] = []
    open_: list[T | str] = [whole]
    while open_:
        one = open_.pop()
        if isinstance(one, str):
            found.append(one)
        else:
            open_.extend(reversed(pieces_of(one)))
    return "".join(found)


def steps_of(whole: T, parts_of: Callable[[T], Sequence[T]]) -> list[Any]:
    """Return the parts of something in a list, for a copy or pickle of it: a nested one is only copied so deep.

    Returns:
        What is not joined as it is, and after their parts, as a class and a number of parts, those that join them.
    """
    steps: list[Any] = []
    folded(whole, parts_of, lambda one, parts: steps.append((type(one), len(parts)) if parts else one))
    return steps


def rejoined(steps: Sequence[Any]) -> Any:
    """Return what `steps_of` took apart."""
    made: list[Any] = []
    for step in steps:
        if isinstance(step, tuple):
            kind, count = step
            parts = made[len(made) - count :]
            del made[len(made) - count :]
            made.append(kind(*parts))
        else:
            made.append(step)
    return made[0]
