"""Metadata as JSON, with errors that name the value at fault."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["from_json_file", "to_json"]


def to_json(metadata: object) -> bytes:
    r"""Encode metadata as JSON.

    As JSON has it, tuples come back as lists and numbers used as dict keys as strings.

    Raises:
        TypeError: ``metadata`` is not a dict.
        ValueError: a value or a dict key cannot be JSON; the message names where it is.

    Examples:
        >>> to_json({"model": "gpt2"})
        b'{\n  "model": "gpt2"\n}'
        >>> to_json({"optimiser": {"betas": {0.9}}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: metadata['optimiser']['betas'] cannot be written as JSON: ...
    """
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(metadata).__name__}")
    fault = _fault(metadata)
    if fault is None:
        return json.dumps(metadata, indent=2).encode("ascii")
    raise ValueError(f"{_blame(metadata)} cannot be written as JSON: {fault}")


def _fault(value: object) -> str | None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return None


def _blame(value: object) -> str:
    # Walks down to the innermost value that fails; ``seen`` stops at a value that holds itself.
    where, seen = "metadata", set[int]()
    while id(value) not in seen:
        seen.add(id(value))
        for name, child in _children(value):
            if _fault(child) is not None or _fault({name: None}) is not None:
                where, value = f"{where}[{name!r}]", child
                break
    return where


def _children(value: object) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def from_json_file(path: Path) -> dict[str, Any]:
    """Read metadata back.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold a JSON object.
    """
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(loaded, dict):
        return loaded
    raise ValueError(f"{str(path)!r} holds a JSON {type(loaded).__name__}, not an object")
