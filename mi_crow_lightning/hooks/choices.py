"""Arguments that must be one of a few, or a finite number: one way to tell, and to refuse the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

__all__ = ["is_finite", "not_known"]


def not_known(argument: str, value: object, allowed: Iterable[str]) -> ValueError:
    """The error for a value that is none of those allowed.

    >>> not_known("keep", "first", ["last", "all"])
    ValueError("keep='first' is not known: choose one of 'last', 'all'")
    """
    return ValueError(f"{argument}={value!r} is not known: choose one of {', '.join(map(repr, allowed))}")


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, numpy's among them. ``True`` and tensors are none.

    >>> [is_finite(value) for value in (2, -0.5, float("nan"), True, "2")]
    [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
