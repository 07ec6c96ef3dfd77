"""Metadata as JSON, with errors that name the value at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mi_crow_lightning._foreign_files import MOST_LEVELS, Damaged, from_json, levels, one_error
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.errors import StoreFileError

__all__ = ["from_json_file", "to_json"]


def to_json(metadata: object) -> bytes:
    r"""Encode metadata as JSON.

    As JSON has it, tuples come back as lists and numbers used as dict keys as strings.

    Raises:
        TypeError: ``metadata`` is not a dict.
        ValueError: a value or a dict key cannot be JSON, or is nested deeper than 100 levels; the message names where
            it is.

    Examples:
        >>> to_json({"model": "gpt2"})
        b'{\n  "model": "gpt2"\n}'
        >>> to_json({"optimiser": {"betas": {0.9}}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: metadata['optimiser']['betas'] cannot be written as JSON: ...
    """
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(metadata).__name__}")
    try:
        if levels(json.dumps(metadata)) <= MOST_LEVELS:
            return json.dumps(metadata, indent=2).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        pass  # the walk finds which value it is
    names, fault = _blame(metadata, ()) or ([], "it changed while it was written")
    where = "".join(f"[{shortened(repr(name))}]" for name in names)
    raise ValueError(f"metadata{shortened(where, 1000)} cannot be written as JSON: {shortened(fault)}")


def _blame(value: object, around: tuple[int, ...]) -> tuple[list[object], str] | None:
    """Return the first value that cannot be written, as the names that lead there, and why. Each value is seen once."""
    if not isinstance(value, (dict, list, tuple)):
        return _fault([], value)
    if id(value) in around:
        return [], "it holds itself"
    if len(around) == MOST_LEVELS:
        return [], f"it is nested deeper than {MOST_LEVELS} levels"
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        if (wrong_name := _fault([name], {name: None})) is not None:
            return wrong_name
        if (found := _blame(child, (*around, id(value)))) is not None:
            return [name, *found[0]], found[1]
    return None


def _fault(names: list[object], value: object) -> tuple[list[object], str] | None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        return names, message_of(error)
    return None


def from_json_file(path: Path) -> dict[str, Any]:
    """Read metadata back.

    Raises:
        FileNotFoundError: there is no such file.
        StoreFileError: it does not hold a JSON object, or one that is nested deeper than metadata are written.
    """
    with one_error(path, StoreFileError):
        loaded = from_json(path.read_bytes())
        if not isinstance(loaded, dict):
            raise Damaged(f"holds a JSON {type(loaded).__name__}, not an object")
        return loaded
