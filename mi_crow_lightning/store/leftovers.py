"""Temporary files that killed processes left: removed, unless their writer is alive.

A writer holds a lock on its temporary file until the file is in its place. The system gives the lock up when the
process ends, however it ends. Where there are no such locks (Windows), nothing is removed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["hold", "remove_leftovers"]


def hold(file: BufferedWriter) -> bool:
    """Lock a new temporary file until it is closed.

    Returns:
        Whether it is still there: somebody who removes leftovers may have come before.
    """
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
    return os.fstat(file.fileno()).st_nlink > 0


def remove_leftovers(folder: Path) -> None:
    """Remove the files in a folder of temporary files that no process holds; what cannot be removed stays.

    The folder may have been made by a stranger: links are not followed, and files of other names are left alone.
    """
    if fcntl is None or folder.is_symlink():
        return
    with suppress(OSError):  # there is no such folder, or it may not be read
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(".tmp-") and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # its writer holds it, it is gone meanwhile, or the folder is read-only
                    _remove_if_free(Path(entry.path))


def _remove_if_free(path: Path) -> None:
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
