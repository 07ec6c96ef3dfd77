"""The checksum of an event file's records, in C where google-crc32c is installed.

TensorBoard computes it in Python, at some 8 MB a second, in the thread that writes the file. That is most of what a
logged step costs. Nothing of TensorBoard is changed here: its writer is given the events of this package together with
their checksum, and whatever else it writes goes its own way.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

__all__ = ["add_summary", "masked_checksum"]


@lru_cache(maxsize=1)
def _in_c() -> Callable[[bytes], int] | None:
    """Return google-crc32c's function, or ``None`` where the package, or what it has compiled, is missing."""
    if importlib.util.find_spec("google_crc32c") is None:
        return None
    import warnings

    with warnings.catch_warnings():  # it warns where it falls back to Python, whose function is not used here
        warnings.simplefilter("ignore", RuntimeWarning)
        import google_crc32c
    return google_crc32c.value if google_crc32c.implementation == "c" else None


def masked_checksum(data: bytes) -> int:
    """Return the masked CRC-32C of a record.

    Args:
        data: the bytes of an event, or of its length.

    Examples:
        >>> hex(masked_checksum(b"123456789"))
        '0xc78ab0e5'
    """
    in_c = _in_c()
    if in_c is None:
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        return int(masked_crc32c(data))
    checksum = in_c(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def add_summary(file_writer: Any, summary: Any, step: int | None = None) -> None:
    """Write values as one event.

    Args:
        file_writer: torch's ``FileWriter``, or whatever else has its ``add_summary``.
        summary: a summary of TensorBoard.
        step: the position on the x axis; ``None`` for what belongs to no step.
    """
    if _in_c() is None or not _all_its_own(file_writer) or not _takes_summed():
        file_writer.add_summary(summary, step)
        return
    from tensorboard.compat.proto.event_pb2 import Event

    event = Event(summary=summary, wall_time=time.time())
    if step is not None:
        event.step = int(step)
    file_writer.event_writer._async_writer.write(_Summed(event.SerializeToString()))


class _Summed:
    """The bytes of an event, and their checksum.

    TensorBoard's ``RecordWriter`` asks for the length, goes through the bytes to compute a checksum, and puts length,
    bytes and checksum together. This gives it no byte to go through, and puts the right checksum at the end.
    """

    __slots__ = ("_record",)

    def __init__(self, data: bytes) -> None:
        self._record = data

    def __len__(self) -> int:
        return len(self._record)

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __radd__(self, before: bytes) -> _WithoutEnd:
        return _WithoutEnd(before + self._record, struct.pack("<I", masked_checksum(self._record)))


class _WithoutEnd:
    """A record up to its last checksum, and that checksum."""

    __slots__ = ("_begin", "_end")

    def __init__(self, begin: bytes, end: bytes) -> None:
        self._begin, self._end = begin, end

    def __add__(self, of_no_byte: bytes) -> bytes:
        return self._begin + self._end


def _all_its_own(file_writer: Any) -> bool:
    """Say whether an event goes the way of torch and TensorBoard alone.

    Others put their functions there, to read along: in a subclass, in an object, or, as MLflow's autologging, in
    the class itself. These get each event as ever.
    """
    from tensorboard.summary.writer import event_file_writer, record_writer
    from torch.utils.tensorboard import writer

    events = getattr(file_writer, "event_writer", None)
    queue = getattr(events, "_async_writer", None)
    records = getattr(queue, "_writer", None)
    return (
        _is_of(writer, file_writer, "add_summary")
        and _is_of(writer, file_writer, "add_event")
        and _is_of(event_file_writer, events, "add_event")
        and _is_of(event_file_writer, queue, "write")
        and _is_of(record_writer, records, "write")
    )


def _is_of(module: ModuleType, owner: object, name: str) -> bool:
    """Say whether a method was written in a module; a wrapper may copy a name, but not the globals."""
    return getattr(getattr(owner, name, None), "__globals__", None) is vars(module)


@lru_cache(maxsize=1)
def _takes_summed() -> bool:
    """Say whether the installed TensorBoard makes the same record of `_Summed` as of the bytes themselves."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    data = bytes(range(256))
    usual, summed = io.BytesIO(), io.BytesIO()
    RecordWriter(usual).write(data)
    try:
        RecordWriter(summed).write(_Summed(data))
    except Exception:  # another version, which does something else with it: its own way is as good, only slower
        return False
    return usual.getvalue() == summed.getvalue()
