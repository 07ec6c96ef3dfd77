"""A text file that holds only whole lines, however the process that writes it ends."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from mi_crow_lightning._foreign_files import from_json

__all__ = ["LineFile", "holds_lines"]

_BLOCK = 65536


class LineFile:
    """A file of UTF-8 lines. Each call appends in one write, which the system has when the call returns.

    A file that is continued is one that `holds_lines`. It may end in half a line if the system went down or the disk
    was full: when it is opened, the half line is cut off, with a warning.

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
        try:
            if mode == "a":
                _end_at_a_line(self._file, path)
        except BaseException:  # the warning may be one
            self._file.close()
            raise

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


def holds_lines(path: Path) -> bool:
    r"""Say whether a file begins as one of JSON lines, or is empty: whatever else it is, it must not be cut.

    Raises:
        OSError: it cannot be read.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "a").write_bytes(b'{"text": "joy"}\n{"te')
        ...     holds_lines(Path(folder, "a"))
        True
    """
    with path.open("rb") as file:
        first, newline, _ = file.read(_BLOCK).partition(b"\n")
    if not newline:  # the only line is not whole, or long
        return first[:1] in (b"", b"{")
    try:
        return isinstance(from_json(first), dict)
    except ValueError:
        return False


def _end_at_a_line(file: FileIO, path: Path) -> None:
    """Cut off the half line at the end of the file, if there is one."""
    size = end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail:
        end = max(0, end - _BLOCK)
        file.seek(end)
        tail = file.read(_BLOCK)
    whole = end + tail.rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)
        warnings.warn(f"{str(path)!r} ended in half a line: its last {size - whole} bytes were cut off", stacklevel=4)
