"""Arrays as bytes for the page: a header in JSON, then each array as it lies in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "unpack"]

_MAGIC = b"MCL1"
_UNIT = 8  # JavaScript's typed arrays begin at multiples of their size


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a header and arrays as bytes: the magic, the header's length, the header, the arrays.

    The header and each array are padded to a multiple of eight bytes. Numbers are little-endian.

    Args:
        header: anything that is JSON, without NaN and infinity.
        arrays: float32 and float64 arrays by name.

    Examples:
        >>> header, arrays = unpack(pack({"layers": ["h.0"]}, {"values": np.array([[0.5]], dtype=np.float32)}))
        >>> header["layers"], arrays["values"]
        (['h.0'], array([[0.5]], dtype=float32))
    """
    described = [{"name": name, "dtype": array.dtype.name, "shape": array.shape} for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": described}, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _UNIT)
    parts = [_MAGIC, struct.pack("<I", len(text)), text]
    for array in arrays.values():
        content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        parts += [content, b"\0" * (-len(content) % _UNIT)]
    return b"".join(parts)


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the arrays that `pack` made bytes of.

    Raises:
        ValueError: the bytes are not those of `pack`.
    """
    if content[:4] != _MAGIC:
        raise ValueError(f"these bytes begin with {content[:4]!r}, not with {_MAGIC!r}")
    (length,) = struct.unpack("<I", content[4:8])
    header = json.loads(content[8 : 8 + length])
    at, arrays = 8 + length, {}
    for described in header.pop("arrays"):
        dtype, shape = np.dtype(described["dtype"]).newbyteorder("<"), tuple(described["shape"])
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[described["name"]] = np.frombuffer(content[at : at + size], dtype).reshape(shape)
        at += size + -size % _UNIT
    return header, arrays
