"""Checks of arguments at the door: each returns what is kept, or raises an error that names the argument.

The messages stay short, whatever was given.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from mi_crow_lightning._shown import shown

__all__ = [
    "check_flag",
    "check_store",
    "chosen",
    "device_of",
    "did_you_mean",
    "is_finite",
    "listed",
    "not_known",
    "one_line",
    "one_of",
    "place",
    "plain",
    "unusable",
    "whole",
    "whole_number",
]

_Name = TypeVar("_Name", bound=str)

_LONGEST_NAME = 200
_MOST_LISTED = 24
_LARGEST = 2**63 - 1


def not_known(argument: str, value: object, allowed: Iterable[str], *, guess: bool = True) -> ValueError:
    """Make the error for a value that is not one of those allowed, with the closest of them.

    Examples:
        >>> not_known("keep", "first", ["last", "all"])
        ValueError("keep='first' is not known: choose one of 'last', 'all'")
        >>> not_known("keep", "al", ["last", "all"])
        ValueError("keep='al' is not known: choose one of 'last', 'all'. Did you mean 'all'?")
    """
    names = list(allowed)
    some = ", ".join(map(shown, names[:_MOST_LISTED])) + (", ..." if len(names) > _MOST_LISTED else "")
    meant = did_you_mean(value, names) if guess else ""
    return ValueError(f"{argument}={shown(value)} is not known: choose one of {some}{meant}")


def did_you_mean(value: object, names: Iterable[str]) -> str:
    """Return the sentence that names what was perhaps meant; empty if nothing is close."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:  # comparing takes the square of the length
        return ""
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.strip().lower(), lowered, n=1, cutoff=0.7)
    return f". Did you mean {lowered[close[0]]!r}?" if close else ""


def one_of(argument: str, value: Any, allowed: Iterable[_Name]) -> _Name:
    """Return ``value`` if it is one of the names that are allowed.

    Raises:
        ValueError: it is not.
    """
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        raise not_known(argument, value, names)
    return value


def chosen(argument: str, value: Any, allowed: Sequence[str], example: str) -> tuple[str, ...]:
    """Return names as a tuple; ``None`` for all.

    Raises:
        TypeError, ValueError: it is not a list of some of these names, each once.
    """
    if value is None:
        return tuple(allowed)
    given = listed(argument, value, "names", example)
    for name in given:
        if not isinstance(name, str) or name not in allowed:
            raise not_known(argument, name, allowed)
    if not given or len(set(given)) < len(given):
        raise ValueError(f"{argument}={shown(given)} must name at least one of them, and each once")
    return tuple(given)


def check_flag(argument: str, value: Any) -> bool:
    """Return ``value`` if it is a bool; a string such as ``"no"`` would count as true.

    Raises:
        TypeError: it is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument}={shown(value)} must be True or False")
    return value


def is_finite(value: object) -> bool:
    """Return whether a value is a finite number, also one of numpy. ``True`` and tensors do not count as numbers.

    Examples:
        >>> [is_finite(value) for value in (2, -0.5, float("nan"), True, "2", 10**400)]
        [True, True, False, False, False, False]
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # no float is as large
        return False


def plain(value: Any) -> Any:
    """Return the numbers in a tensor or an array, and anything else as it is.

    Examples:
        >>> import torch
        >>> plain(torch.tensor([3, 5])), plain(torch.tensor(0.5)), plain("last")
        ([3, 5], 0.5, 'last')
    """
    if not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except Exception:  # it has no numbers, as a tensor on the meta device
        return None


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


def whole_number(argument: str, value: Any, least: int, what: str = "a whole number") -> int:
    """Return ``value`` if it is an ``int`` of at least ``least`` that fits 64 bits.

    Raises:
        ValueError: it is something else.

    Examples:
        >>> whole_number("max_bytes", 0.5, 1, "a whole number of bytes")
        Traceback (most recent call last):
        ...
        ValueError: max_bytes=0.5 must be a whole number of bytes, 1 or more
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{argument}={shown(value)} must be {what}, {least} or more")
    if value > _LARGEST:
        raise ValueError(f"{argument}={shown(value)} must be {what}, {least} or more and below 2**63")
    return value


def one_line(argument: str, value: Any, forbidden: str = "", why: str = "") -> str:
    """Return ``value`` if it is a name that fits one line of a log: not blank, at most 200 characters, no line breaks.

    Args:
        argument: the argument's name.
        value: what was given.
        forbidden: a character that it must not hold.
        why: the end of the sentence in the message.

    Raises:
        ValueError: it is something else.

    Examples:
        >>> one_line("name", "a/b", forbidden="/", why=": it becomes part of a tag")
        Traceback (most recent call last):
        ...
        ValueError: name='a/b' must be a non-empty string without '/': it becomes part of a tag
    """
    without = f" without {forbidden!r}" if forbidden else ""
    if not isinstance(value, str) or not value.strip() or (forbidden and forbidden in value):
        raise ValueError(f"{argument}={shown(value)} must be a non-empty string{without}{why}")
    if len(value) > _LONGEST_NAME or not value.isprintable():
        raise ValueError(
            f"{argument}={shown(value)} must be a non-empty string{without} of at most {_LONGEST_NAME} characters, "
            f"without line breaks and other characters that cannot be printed{why}"
        )
    return value


def listed(argument: str, value: Any, what: str, example: str) -> list[Any]:
    """Return the items of a list, a tuple or another collection.

    Args:
        argument: the argument's name.
        value: what was given.
        what: what the items are, for the message: ``"names"``.
        example: a right argument, for the message.

    Raises:
        TypeError: it is not a collection, or a single string, whose items would be its characters.

    Examples:
        >>> listed("statistics", "mean", "names", "['mean', 'std']")
        Traceback (most recent call last):
        ...
        TypeError: statistics='mean' must be a list of names, such as statistics=['mean', 'std'], not one string
    """
    lone = isinstance(value, (str, bytes))
    if not lone and isinstance(value, Iterable) and not isinstance(value, Mapping):
        try:
            return list(value)
        except Exception as error:  # as of a tensor without dimensions
            raise TypeError(f"{argument}={shown(value)} must be a list of {what}: {shown(error)}") from error
    given = "one string" if lone else f"a {type(value).__name__}"
    raise TypeError(f"{argument}={shown(value)} must be a list of {what}, such as {argument}={example}, not {given}")


def place(argument: str, value: Any) -> Path:
    """Return the path that ``value`` names.

    Raises:
        TypeError, ValueError: it is neither a string nor a path, or no file can have that name.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument}={shown(value)} must be a path: a string or a pathlib.Path")
    path = Path(value)
    if "\0" in str(path):
        raise ValueError(f"{argument}={shown(value)} holds a NUL, which no file's name may")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(f"{argument}={shown(value)} holds what no file's name may: {error.reason}") from None
    return path


def check_store(value: Any) -> Any:
    """Return ``value`` if it can be a store, or ``None``.

    Raises:
        TypeError: it is something else, such as the path of a folder.
    """
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"store={shown(value)} is a path: give the store of that folder, LocalStore({shown(value)})")
    if value is not None and (isinstance(value, type) or not callable(getattr(value, "put_tensor", None))):
        raise TypeError(f"store={shown(value)} must be a store, such as LocalStore('folder')")
    return value


def device_of(argument: str, value: Any, here: bool = False) -> Any:
    """Return the ``torch.device`` that holds numbers and that ``value`` names.

    Args:
        argument: the argument's name.
        value: what was given.
        here: whether this machine must have it; a model without weights may be on ``"meta"``.

    Raises:
        TypeError, ValueError: it names none, or ``"meta"``, which holds no numbers.
    """
    import torch  # a program that only lists layers needs no checks of devices

    if isinstance(value, bool) or not isinstance(value, (str, int, torch.device)):
        raise TypeError(f"{argument}={shown(value)} must be a device: 'cpu', 'cuda:0', or a torch.device")
    try:
        device = torch.device(value)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f"{argument}={shown(value)} is not a device: write 'cpu' or 'cuda:0', say") from error
    if device.type == "meta" and not here:
        raise ValueError(f"{argument}='meta' holds no numbers: choose 'cpu' or 'cuda:0', say")
    if here:
        try:
            torch.empty(0, device=device)
        except Exception as error:  # a build without that device raises an AssertionError
            raise ValueError(f"{argument}={shown(value)} is not a device of this machine: {shown(error)}") from error
    return device


def unusable(tensor: Any) -> str | None:
    """Return why the numbers of a tensor cannot be read as those of an ordinary one; ``None`` if they can.

    Examples:
        >>> import torch
        >>> unusable(torch.ones(2, device="meta")), unusable(torch.ones(2))
        ('is on the meta device and holds no numbers', None)
    """
    if tensor.is_nested:
        return "is nested"
    if tensor.is_quantized:
        return "is quantised: give it dequantised"
    if str(tensor.layout) != "torch.strided":
        return f"is sparse ({tensor.layout}): give it as .to_dense()"
    if tensor.is_meta:
        return "is on the meta device and holds no numbers"
    return "is complex" if tensor.is_complex() else None
