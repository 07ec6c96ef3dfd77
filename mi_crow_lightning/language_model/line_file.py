"""A text file that holds only whole lines, however the process that writes it ends."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

__all__ = ["LineFile"]


class LineFile:
    """A file of UTF-8 lines. Each call appends in one write, which the system has when the call returns.

    A file may end in half a line if the system went down or the disk was full. When such a file is opened to be
    continued, the half line is cut off, with a warning.

    Args:
        path: the file; its folder is created.
        mode: ``"x"`` to create the file, ``"w"`` to overwrite it, ``"a"`` to continue it.

    Raises:
        FileExistsError: the file exists and the mode is ``"x"``.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(path, {"x": "x", "w": "w", "a": "a+"}[mode])
        if mode == "a":
            _end_at_a_line(self._file, path)

    def append(self, lines: Sequence[str]) -> None:
        """Write all of the lines or none.

        Raises:
            OSError: they cannot be written; the file is as it was before.
        """
        # A character that UTF-8 does not have (half of a surrogate pair) becomes its JSON escape.
        rest = memoryview("".join(f"{line}\n" for line in lines).encode("utf-8", errors="backslashreplace"))
        start = self._file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def _end_at_a_line(file: FileIO, path: Path) -> None:
    """Cut off the half line at the end of the file, if there is one."""
    size = end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail:
        end = max(0, end - 65536)
        file.seek(end)
        tail = file.read(65536)
    whole = end + tail.rfind(b"\n") + 1
    if whole < size:
        warnings.warn(f"{str(path)!r} ended in half a line: its last {size - whole} bytes were cut off", stacklevel=4)
        file.truncate(whole)
