"""Answers as bytes: each array compressed by itself, once, so that the page unpacks only what it shows."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mi_crow_lightning.run_page.answers import Answer

__all__ = ["Archive"]


class Archive:
    """Answers, put together.

    The bytes are the length of the table, the table, and the parts. The table, which is compressed JSON, holds the
    answers, in which a part is named by its number, and where each part ends.
    """

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._parts: dict[bytes, int] = {}

    def with_all(self, answers: Iterable[Answer]) -> Archive:
        """Return an archive with more answers."""
        more = Archive()
        more._entries, more._parts = self._entries.copy(), self._parts.copy()
        for answer in answers:
            more._add(answer)
        return more

    def _add(self, answer: Answer) -> None:
        entry: dict[str, Any] = {"route": answer.route, "parameters": answer.parameters, "status": answer.status}
        if answer.arrays is None:
            text = json.dumps(answer.content, allow_nan=False, separators=(",", ":")).encode()
            entry["text"] = self._part(text)
        else:
            entry["header"] = answer.content
            entry["arrays"] = [
                [name, array.dtype.name, list(array.shape), self._part(_planes(array))]
                for name, array in answer.arrays.items()
            ]
        self._entries.append(entry)

    def to_bytes(self, about: Any) -> bytes:
        """Return the archive.

        Args:
            about: anything that is JSON, which the page gets besides the answers.
        """
        ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64).tolist()
        table = {"about": about, "ends": ends, "answers": self._entries}
        packed = zlib.compress(json.dumps(table, allow_nan=False, separators=(",", ":")).encode(), 9)
        return b"".join([struct.pack("<I", len(packed)), packed, *self._parts])

    def _part(self, content: bytes) -> int:
        """Return the number of a part; the steps of most series are the same part."""
        return self._parts.setdefault(zlib.compress(content, 9), len(self._parts))


def _planes(array: NDArray[Any]) -> bytes:
    """Return an array's first bytes of all numbers, then their second bytes, and so on: those are alike.

    The numbers of a matrix stand column by column, because neighbours in time are alike.
    """
    by_column = array.T if array.ndim == 2 else array
    little = np.ascontiguousarray(by_column, dtype=array.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes() if little.size else b""
