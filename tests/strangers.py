"""Files as strangers write them: valid ones damaged by hypothesis, in their bytes or in one field of their JSON.

Whatever they hold, reading them gives a value or the documented error, which `outcome` checks.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

MOST_SECONDS, MOST_KILOBYTES = 60.0, 400_000  # mostly milliseconds: a busy machine may take long, a loop longer
CLAIMS = [
    0,
    1,
    2,
    3,
    4,
    8,
    127,
    255,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
_DEEP = "as deep as lists are written"


def outcome(read: Callable[[], T], path: Path, kind: type[Exception] | tuple[()]) -> Exception | T:
    """What reading returns, or its error, once that is known to be documented, short, and to name the file."""
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result: Exception | T = read()
    except kind as error:
        result = error
    if isinstance(result, kind):
        assert path.name in str(result)
        assert len(str(result).encode()) <= 2048
    assert time.monotonic() - start < MOST_SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown / (1024 if sys.platform == "darwin" else 1) < MOST_KILOBYTES
    return result


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of a valid file, with one to four places damaged."""
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 24))
        how = draw(st.sampled_from(["bytes", "number", "cut", "leave out", "again", "end"]))
        if how == "bytes":
            new = draw(st.binary(min_size=size, max_size=size))
            data = data[:at] + new + data[at + size :]
        elif how == "number":
            width, claim = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from(CLAIMS) | st.integers(0, 2**64 - 1))
            new = (claim % 256**width).to_bytes(width, draw(st.sampled_from(["little", "big"])))
            data = data[:at] + new + data[at + width :]
        elif how == "cut":
            data = data[:at]
        elif how == "leave out":
            data = data[:at] + data[at + size :]
        elif how == "again":
            data = data[: at + size] + data[at:]
        else:
            data += draw(st.binary(max_size=40))
    return data


TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["", "x" * 3000, "ü" * 1500, "\ud800", "\0", "__metadata__", "1"]
)
NUMBERS = st.sampled_from(CLAIMS) | st.integers() | st.floats() | st.sampled_from([10**400, -1, -(10**300), True])
ODD = st.recursive(
    st.none() | NUMBERS | TEXTS | st.just(_DEEP),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def as_json(value: Any) -> str:
    """JSON, with `_DEEP` as lists that are one inside the other."""
    return json.dumps(value).replace(json.dumps(_DEEP), "[" * 5000 + "]" * 5000)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A value of JSON with one place in it replaced, left out, given twice, or joined by another."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 3)):
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place, copy = draw(st.sampled_from(places)), value.copy()
        how = draw(st.sampled_from(["inside", "inside", "inside", "gone", "one more"]))
        if how == "inside":
            copy[place] = draw(changed(value[place]))
        elif how == "gone":
            del copy[place]
        elif isinstance(copy, dict):
            copy[draw(TEXTS)] = draw(ODD)
        else:
            copy.append(draw(ODD | st.sampled_from(value)))
        return copy
    return draw(ODD)
