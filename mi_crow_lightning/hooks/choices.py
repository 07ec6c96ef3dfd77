"""Arguments that must be one of a few: one way to refuse the others."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["not_known"]


def not_known(argument: str, value: object, allowed: Iterable[str]) -> ValueError:
    """The error for a value that is none of those allowed.

    >>> not_known("keep", "first", ["last", "all"])
    ValueError("keep='first' is not known: choose one of 'last', 'all'")
    """
    return ValueError(f"{argument}={value!r} is not known: choose one of {', '.join(map(repr, allowed))}")
