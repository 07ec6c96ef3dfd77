"""Files that others may have written: limits first, then the form, and one error that names the file.

Whoever reads such a file refuses a size before anything of that size is allocated. Whatever goes wrong on the way, the
user sees the one error of the format, with the file's name, in a message of at most 2 kB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened

__all__ = [
    "LONGEST_NAME",
    "MOST_LEVELS",
    "MOST_TENSORS",
    "Damaged",
    "check_name",
    "from_json",
    "levels",
    "named",
    "one_error",
]

LONGEST_NAME = 1000
"""The most characters in the name of a tensor, a layer or a statistic."""

MOST_TENSORS = 100_000
"""The most tensors in one file."""

MOST_LEVELS = 100
"""The most lists and objects that are one inside the other, in JSON."""

_PATH_BYTES, _REASON_BYTES = 800, 1000
_BRACKETS = re.compile(r"[\[{\]}]")


class Damaged(ValueError):
    """The reason for refusing a file: words that go on where the file's name stands; `one_error` adds that."""


@contextmanager
def one_error(path: Path, kind: type[Exception]) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error of one kind, which names the file.

    Args:
        path: the file.
        kind: the error that the format documents.

    Raises:
        kind: anything but an OSError was raised inside: an OSError, which says what the system found, is left.

    Examples:
        >>> with one_error(Path("v.gguf"), ValueError):
        ...     raise Damaged("holds no direction")
        Traceback (most recent call last):
        ValueError: 'v.gguf' holds no direction
        >>> with one_error(Path("v.gguf"), ValueError):
        ...     {}["direction.1"]
        Traceback (most recent call last):
        ValueError: 'v.gguf' cannot be read: KeyError: 'direction.1'
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        says = message_of(error)
        reason = says if isinstance(error, Damaged) else f"cannot be read: {type(error).__name__}: {says}"
        # A traceback shows the cause as well: one that is as long as the file is left out.
        cause = error if len(says) < _REASON_BYTES else None
        raise kind(f"{named(path)} {shortened(reason, _REASON_BYTES)}") from cause


def named(path: Path) -> str:
    """Return a path as messages show it; of a very long one both ends."""
    return shortened(repr(str(path)), _PATH_BYTES)


def from_json(data: str | bytes, part: str = "") -> Any:
    """Read JSON that is not nested deep.

    Args:
        data: the text.
        part: words that lead from the file to the text, if that is a part of it: ``"has an origin that"``.

    Raises:
        Damaged: it is not JSON in UTF-8, or has more than `MOST_LEVELS` levels.

    Examples:
        >>> from_json('{"layers": ["h.0"]}')
        {'layers': ['h.0']}
        >>> from_json("[" * 5000, "has an origin that")
        Traceback (most recent call last):
        mi_crow_lightning._foreign_files.Damaged: has an origin that is nested deeper than 100 levels
    """
    part = f"{part} " if part else ""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        if levels(text) > MOST_LEVELS:
            raise Damaged(f"{part}is nested deeper than {MOST_LEVELS} levels")
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Damaged(f"{part}is not JSON: {message_of(error)}") from None


def levels(text: str) -> int:
    r"""Return how many lists and objects of a JSON text are one inside the other, at most, without building any.

    Examples:
        >>> levels('[{"[[": "\\"["}, []]')
        2
    """
    # Each second part between quotes lies outside of strings, once no escaped quote is left.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in _BRACKETS.findall(outside)), default=0)


def check_name(kind: str, name: object) -> str:
    """Return a name that a file gives, such as a layer's.

    Raises:
        Damaged: it is not a text, is empty, or is too long.
        UnicodeEncodeError: it holds half of a surrogate pair, and could not be written again.

    Examples:
        >>> check_name("layer", "h.0")
        'h.0'
    """
    if not isinstance(name, str) or not name:
        raise Damaged(f"has {shortened(repr(name))} as the name of a {kind}: it must be a text that is not empty")
    if len(name) > LONGEST_NAME:
        raise Damaged(f"has a {kind} with a name of {len(name)} characters, and at most {LONGEST_NAME} are read")
    name.encode()
    return name
