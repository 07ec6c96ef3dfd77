"""Hooks' states in a checkpoint of ``transformers.Trainer``: one safetensors file beside ``trainer_state.json``.

Its metadata hold ``format``, ``version`` and ``state``: the state as JSON, in which ``{"tensor": "3"}`` stands for the
tensor of that name, ``{"dict": [[key, value], ...]}`` for a dictionary and ``{"tuple": [...]}`` for a tuple.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors.torch import save
from torch import Tensor

from mi_crow_lightning._foreign_files import Damaged, from_json, one_error
from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import HookStateError
from mi_crow_lightning.store.files import write_atomically
from mi_crow_lightning.store.safetensors_file import opened, read_header

__all__ = ["file_name", "read", "write"]

_FORMAT = "mi-crow-lightning hook states"
_VERSION = "1"


def file_name(name: str | None, place: int) -> str:
    """Return the name of a callback's file.

    Args:
        name: the callback's name.
        place: where it stands among those of the Trainer that have none, from 0.

    Examples:
        >>> file_name(None, 0), file_name(None, 1), file_name("my hooks", 0)
        ('hooks.safetensors', 'hooks-2.safetensors', 'hooks-my%20hooks.safetensors')
    """
    which = quote(name, safe="") if name is not None else str(place + 1) if place else ""
    return f"hooks{'-' if which else ''}{which}.safetensors"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, whole or not at all.

    Raises:
        HookStateError: it holds something other than tensors, numbers, texts and containers of these.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    facts = {"format": _FORMAT, "version": _VERSION, "state": json.dumps(_packed(state, "state", tensors))}
    write_atomically(path, save(tensors, metadata=facts))


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        HookStateError: the file holds something else, is damaged, or was written by a later release.
        OSError: it cannot be read.
    """
    with one_error(path, HookStateError):
        header = read_header(path)
        if header.metadata.get("format") != _FORMAT:
            raise Damaged(f"is not a file of hooks' states: these have {_FORMAT!r} in their metadata")
        if header.metadata.get("version") != _VERSION:
            raise Damaged(f"has version {header.metadata.get('version')!r}, and this release reads {_VERSION!r}")
        packed = from_json(header.metadata.get("state", ""), "has a state that")
        with opened(path) as file:
            state = _unpacked(packed, file.get_tensor)
        if not isinstance(state, dict):
            raise Damaged("has a state that is not a dictionary")
        return state


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON has it; its tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        rows = ((key, one) for key, one in value.items())
        return {
            "dict": [[_packed(key, place, tensors), _packed(one, f"{place}[{key!r}]", tensors)] for key, one in rows]
        }
    if isinstance(value, (list, tuple)):
        parts = [_packed(one, f"{place}[{index}]", tensors) for index, one in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    raise HookStateError(
        f"{place} is {shown(value)}: in a checkpoint of transformers.Trainer the state of a hook may hold tensors, "
        "numbers, texts, None, and dictionaries, lists and tuples of these, which a safetensors file can hold"
    )


def _unpacked(packed: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpacked(one, tensor) for one in packed]
    if not isinstance(packed, dict):
        return packed
    (kind, value), *more = packed.items()
    if more or kind not in ("tensor", "dict", "tuple"):
        raise Damaged(f"has a state with {shown(packed)} in it")
    if kind == "tensor":
        return tensor(value)
    if kind == "tuple":
        return tuple(_unpacked(one, tensor) for one in value)
    return {_unpacked(key, tensor): _unpacked(one, tensor) for key, one in value}
