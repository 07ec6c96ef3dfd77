"""Checks of arguments that must be numbers, or one of a few values."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

__all__ = ["is_finite", "not_known", "plain", "whole"]


def not_known(argument: str, value: object, allowed: Iterable[str]) -> ValueError:
    """Make the error for a value that is not one of those allowed.

    Examples:
        >>> not_known("keep", "first", ["last", "all"])
        ValueError("keep='first' is not known: choose one of 'last', 'all'")
    """
    return ValueError(f"{argument}={value!r} is not known: choose one of {', '.join(map(repr, allowed))}")


def is_finite(value: object) -> bool:
    """Return whether a value is a finite number, also one of numpy. ``True`` and tensors do not count as numbers.

    Examples:
        >>> [is_finite(value) for value in (2, -0.5, float("nan"), True, "2")]
        [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """Return the numbers in a tensor or an array, and anything else as it is.

    Examples:
        >>> import torch
        >>> plain(torch.tensor([3, 5])), plain(torch.tensor(0.5)), plain("last")
        ([3, 5], 0.5, 'last')
    """
    return value.tolist() if hasattr(value, "tolist") else value


def whole(value: Any) -> int | None:
    """Return a whole number of any library as an ``int``, and ``None`` for all else, also for ``True`` and ``3.0``.

    Examples:
        >>> import torch
        >>> [whole(value) for value in (3, torch.tensor(3), True, torch.tensor(True), 3.0, "3", [3])]
        [3, 3, None, None, None, None, None]
    """
    number = plain(value)
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        return None
    return operator.index(number)
