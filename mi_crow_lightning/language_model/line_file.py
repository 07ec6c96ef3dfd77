"""A text file that holds whole lines only, whatever ends the process that writes it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

__all__ = ["LineFile"]


class LineFile:
    """Appends lines of UTF-8, each call in one write that is with the system when it returns.

    A file that ends in a half line, because the system went down or its disk was full, loses that one when it is
    opened to be continued, with a warning.

    Args:
        path: the file; its folder is made.
        mode: ``"x"`` for a new one, ``"w"`` to write it anew, ``"a"`` to continue it.

    Raises:
        FileExistsError: it is there and the mode is ``"x"``.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(path, {"x": "x", "w": "w", "a": "a+"}[mode])
        if mode == "a":
            _end_at_a_line(self._file, path)

    def append(self, lines: Sequence[str]) -> None:
        """Write the lines, all or none.

        Raises:
            OSError: they cannot be written; the file is as it was before.
        """
        # What is no text (half of a surrogate pair) becomes the escape that JSON has for it.
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
    """Cut the half line at the end of the file, if there is one."""
    size = end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail:
        end = max(0, end - 65536)
        file.seek(end)
        tail = file.read(65536)
    whole = end + tail.rfind(b"\n") + 1
    if whole < size:
        warnings.warn(f"{str(path)!r} ended in half a line, which was cut: {size - whole} bytes", stacklevel=4)
        file.truncate(whole)
