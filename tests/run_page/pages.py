"""A page, read back without the browser: an own way through the bytes, which shares no line with the package."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Embedded(NamedTuple):
    """What a page holds: its title and its lines, and the answers by route and parameters."""

    about: dict[str, Any]
    answers: dict[str, Any]

    def find(self, route: str, **parameters: Any) -> Any:
        return self.answers[key(route, {name: str(value) for name, value in parameters.items()})]


def key(route: str, parameters: dict[str, str]) -> str:
    return json.dumps([route, sorted(parameters.items())])


def embedded(page: Path) -> Embedded:
    """Read a page."""
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/octet-stream" id="answers">([^<>&]*)</script>', text)
    data = base64.b85decode(block.translate(str.maketrans(",/.", "<>&")))
    (length,) = struct.unpack_from("<I", data)
    table = json.loads(zlib.decompress(data[4 : 4 + length]))
    starts = [4 + length + end for end in [0, *table["ends"]]]
    parts = [zlib.decompress(data[start:end]) for start, end in pairwise(starts)]
    found = {}
    for entry in table["answers"]:
        if "text" in entry:
            answer: Any = json.loads(parts[entry["text"]])
        else:
            arrays = {name: array(parts[part], dtype, shape) for name, dtype, shape, part in entry["arrays"]}
            answer = (entry["header"], arrays)
        found[key(entry["route"], entry["parameters"])] = answer if entry["status"] == 200 else entry["status"]
    return Embedded(table["about"], found)


def array(planes: bytes, dtype: str, shape: list[int]) -> np.ndarray[Any, Any]:
    """Put together the bytes of each number: all first bytes come first, and the numbers of a matrix by column."""
    size = np.dtype(dtype).itemsize
    count = len(planes) // size
    numbers = b"".join(planes[at::count] for at in range(count))
    return np.frombuffer(numbers, np.dtype(dtype).newbyteorder("<")).reshape(shape, order="F")
