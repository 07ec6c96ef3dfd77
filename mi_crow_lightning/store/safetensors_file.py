"""Safetensors files that others may have written: the header alone is read and judged before any tensor.

A file begins with the header's length, eight bytes, and the header, JSON: by name each tensor's dtype, shape and place,
and ``__metadata__``, texts. The library checks that the tensors fill the file and do not overlap; but it maps all of a
file into memory that may be too small for it, also where the header says that it is a model and not what was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from mi_crow_lightning._foreign_files import LONGEST_NAME, MOST_TENSORS, Damaged, from_json
from mi_crow_lightning._shown import shortened

__all__ = ["Header", "check_names", "opened", "read_header"]

_LONGEST_HEADER = 100_000_000  # bytes, as in the library


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        metadata: texts by name.
        shapes: the shape of each tensor by its name.
    """

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises:
        Damaged: it is not such a file, or holds more tensors, or longer names, than are read.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(8)
        length, left = int.from_bytes(begin, "little"), path.stat().st_size - 8
        if len(begin) < 8 or not 2 <= length <= min(left, _LONGEST_HEADER):
            raise Damaged(f"is not a readable safetensors file: a header of {length} bytes, and {left} bytes are left")
        read = from_json(file.read(length), "is not a readable safetensors file: its header")
    if not isinstance(read, dict) or not isinstance(metadata := read.pop("__metadata__", {}), dict):
        raise Damaged("is not a readable safetensors file: its header is not a JSON object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise Damaged("is not a readable safetensors file: its metadata hold something other than texts")
    check_names(read)
    return Header(metadata, {name: _shape(name, entry) for name, entry in read.items()})


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Damaged(f"is not a readable safetensors file: {shortened(repr(name))} has no shape in its header")
    return tuple(shape)


def check_names(names: Collection[str]) -> None:
    """Refuse more tensors, or longer names, than a file may hold.

    Raises:
        Damaged: there are.
    """
    if len(names) > MOST_TENSORS:
        raise Damaged(f"holds {len(names)} tensors, and at most {MOST_TENSORS} are read")
    if (longest := max(map(len, names), default=0)) > LONGEST_NAME:
        raise Damaged(f"has a tensor with a name of {longest} characters, and at most {LONGEST_NAME} are read")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file whose header was read, for its tensors.

    Raises:
        Damaged: the library cannot read it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise Damaged(f"is not a readable safetensors file: {error}") from error
