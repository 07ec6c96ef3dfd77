"""A text file that holds only whole batches of lines, however the process that writes it ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from mi_crow_lightning._foreign_files import from_json
from mi_crow_lightning._warned import warn
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["LineFile", "holds_lines", "whole_batches"]

_BLOCK = 65536

# JSON strings may hold these as they are, and many readers (`str.splitlines`, JavaScript) take them for line breaks.
_SEPARATORS = ("\u2028", "\u2029", "\u0085")


class LineFile:
    """A file of JSON lines in UTF-8. Each call appends a batch in one write, which the system has when it returns.

    A file that is continued is one that `holds_lines`. A process that is killed within that write may leave half of the
    batch. So a file beside this one, ``<name>.unfinished``, holds the number of bytes up to which batches are whole;
    `close` removes it. When the file is opened to be continued, whatever follows is cut off, with a warning, and so is
    half a line, which the system may leave when it goes down.

    Args:
        path: the file; its folder is created.
        mode: ``"x"`` to create the file, ``"w"`` to overwrite it, ``"a"`` to continue it.

    Raises:
        FileExistsError: the file exists and the mode is ``"x"``.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._mark = _mark_of(path)
        self._file = FileIO(path, {"x": "x", "w": "w", "a": "a+"}[mode])
        try:
            if mode == "a":
                _end_at_a_batch(self._file, path, self._mark)
                _end_at_a_line(self._file, path)
            self._whole = FileIO(self._mark, "w")
        except BaseException:  # the warning may be one
            self._file.close()
            raise
        self._note_whole(self._file.seek(0, os.SEEK_END))

    def append(self, lines: Sequence[str]) -> None:
        """Write all of the lines or none.

        Raises:
            OSError: they cannot be written; the file is as it was before.
        """
        text = "".join(f"{line}\n" for line in lines)
        for separator in _SEPARATORS:
            text = text.replace(separator, f"\\u{ord(separator):04x}")
        # A character that UTF-8 does not have (half of a surrogate pair) becomes its JSON escape.
        rest = memoryview(text.encode("utf-8", errors="backslashreplace"))
        start = self._file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._note_whole(self._file.seek(0, os.SEEK_END))
        except BaseException:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if not self._file.closed:
            self._file.close()
            self._whole.close()
            self._mark.unlink(missing_ok=True)

    def _note_whole(self, size: int) -> None:
        """Note up to which byte batches are whole; so few bytes are written as a whole or not at all."""
        self._whole.seek(0)
        self._whole.write(b"%020d" % size)


def _end_at_a_batch(file: FileIO, path: Path, mark: Path) -> None:
    """Cut off what a process wrote of a batch when it was killed, if it left a note of where that begins."""
    whole = _noted(mark)
    if whole is not None:
        _cut(file, path, whole, "batch")


def whole_batches(path: Path) -> tuple[bytes, int]:
    """Return the bytes of a file that belong to whole batches, and how many bytes follow them.

    Another process may be writing the file, or may have been killed while it did.

    Raises:
        OSError: it cannot be read.
    """
    mark = _mark_of(path)
    noted = _noted(mark)
    while True:
        data, before = path.read_bytes(), noted
        noted = _noted(mark)
        if before is None and noted is None and path.stat().st_size == len(data):
            return data, 0  # nobody writes
        if before is not None and (noted is None or noted >= before):  # else the file was begun again
            return data[:before], max(0, len(data) - before)


def _noted(mark: Path) -> int | None:
    """Return up to which byte batches are whole by a writer's note; ``None`` if it left none, or half a note."""
    try:
        noted = mark.read_bytes()
    except FileNotFoundError:
        return None
    return int(noted) if noted.isdigit() else None


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


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
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail:
        end = max(0, end - _BLOCK)
        file.seek(end)
        tail = file.read(_BLOCK)
    _cut(file, path, end + tail.rfind(b"\n") + 1, "line")


def _cut(file: FileIO, path: Path, whole: int, unit: str) -> None:
    size = file.seek(0, os.SEEK_END)
    if whole < size:
        file.truncate(whole)
        warn(
            f"{str(path)!r} ended in half a {unit}: its last {size - whole} bytes were cut off",
            InexactWarning,
            stacklevel=5,
        )
