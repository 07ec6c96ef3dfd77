"""The records of a TensorBoard event file that others may have written.

A record is its length, eight bytes, a checksum of these, the bytes of an event, and a checksum of those. TensorBoard's
own reader asks for as many bytes as the length says, and ends without a word at a checksum that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mi_crow_lightning._foreign_files import Damaged
from mi_crow_lightning.loggers.checksum import masked_checksum

__all__ = ["events"]

_LENGTH, _CHECKSUM = 8, 4


def events(path: Path) -> Iterator[Any]:
    """Go through the events of a file. One that was cut off, as by a process that was killed, ends with the last whole.

    Raises:
        Damaged: a checksum does not fit.
        DecodeError: a record is not an event.
        OSError: the file cannot be read.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    def checked(data: bytes, checksum: bytes) -> bytes:
        if int.from_bytes(checksum, "little") != masked_checksum(data):
            raise Damaged(f"is damaged at byte {place}: a checksum does not fit")
        return data

    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while place + _LENGTH + _CHECKSUM <= size:
            begin = file.read(_LENGTH + _CHECKSUM)
            length = int.from_bytes(checked(begin[:_LENGTH], begin[_LENGTH:]), "little")
            end = place + len(begin) + length + _CHECKSUM
            if end > size:
                return
            data = file.read(length)
            yield Event.FromString(checked(data, file.read(_CHECKSUM)))
            place = end
