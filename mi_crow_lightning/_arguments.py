"""Arguments that must be one of a few, or numbers: one way to tell, and to refuse the others."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

__all__ = ["is_finite", "not_known", "plain", "whole"]


def not_known(argument: str, value: object, allowed: Iterable[str]) -> ValueError:
    """The error for a value that is none of those allowed.

    Examples:
        >>> not_known("keep", "first", ["last", "all"])
        ValueError("keep='first' is not known: choose one of 'last', 'all'")
    """
    return ValueError(f"{argument}={value!r} is not known: choose one of {', '.join(map(repr, allowed))}")


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, numpy's among them. ``True`` and tensors are none.

    Examples:
        >>> [is_finite(value) for value in (2, -0.5, float("nan"), True, "2")]
        [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """A tensor or an array as the numbers that it holds, anything else as it is.

    Examples:
        >>> import torch
        >>> plain(torch.tensor([3, 5])), plain(torch.tensor(0.5)), plain("last")
        ([3, 5], 0.5, 'last')
    """
    return value.tolist() if hasattr(value, "tolist") else value


def whole(value: Any) -> int | None:
    """A whole number of any library as an ``int``; ``None`` for all else, ``True`` and ``3.0`` among it.

    Examples:
        >>> import torch
        >>> [whole(value) for value in (3, torch.tensor(3), True, torch.tensor(True), 3.0, "3", [3])]
        [3, 3, None, None, None, None, None]
    """
    number = plain(value)
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        return None
    return operator.index(number)
