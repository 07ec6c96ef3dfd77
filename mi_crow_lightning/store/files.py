"""Files that are either whole or absent, inside one folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mi_crow_lightning.errors import StoreKeyError
from mi_crow_lightning.store.leftovers import hold

__all__ = ["holds_file", "inside", "is_file", "is_folder", "visible", "write_atomically"]


def write_atomically(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write ``data`` to ``path``, so that readers see the earlier content or all of the new one.

    The name of the temporary file starts with a dot, as no name in the store may: one that a killed process leaves
    behind is never listed and never read.

    Args:
        path: the file; its folder is made.
        data: its new content.
        scratch: the folder for the temporary file, on the same file system, for `remove_leftovers`; ``None`` for the
            folder of ``path``.

    Raises:
        OSError: the disk is full, the folder is not writable, ... The earlier content is kept.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "new", "a.json"), b"{}")
        ...     Path(folder, "new", "a.json").read_bytes()
        b'{}'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _write_and_move(path, data, path.parent if scratch is None else scratch):
        pass  # the temporary file was taken for a leftover before it could be held
    _sync_folder(path.parent)


def _write_and_move(path: Path, data: bytes, scratch: Path) -> bool:
    """Write a temporary file and move it to its place; return whether it was still there to be written."""
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f".tmp-{secrets.token_hex(8)}"
    try:
        # Mode "x" gives the usual permissions (umask); tempfile would make the tensor private to its writer.
        with temporary.open("xb") as file:
            if not hold(file):
                return False
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # while it is held; Windows moves no open file
                os.replace(temporary, path)
        if os.name == "nt":
            os.replace(temporary, path)
    except BaseException:
        # Ctrl-C must not leave a file behind either; the first error is the one to report.
        with suppress(OSError):
            temporary.unlink()
        raise
    return True


def _sync_folder(folder: Path) -> None:
    # The new name is in the folder, which has to reach the disk as well. Windows opens no folders.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def inside(root: Path, *parts: str) -> Path:
    """Join ``parts`` to ``root`` and make sure that the result lies in ``root``, links followed.

    Raises:
        StoreKeyError: the path, or what a link on it points to, lies outside.

    Examples:
        >>> inside(Path("/data"), "runs", "a").as_posix()
        '/data/runs/a'
    """
    path = root.joinpath(*parts)
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if real.is_relative_to(home):
        return path
    raise StoreKeyError(
        f"{'/'.join(parts)!r} leads to {str(real)!r}, outside the store's folder {str(home)!r}. "
        f"Allowed: paths, and links, that stay in that folder."
    )


def visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Go through the entries of ``folder`` by name, without temporary files; there are none without a folder."""
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    yield from shown


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder, or a link to one; a link that leads in a circle is neither."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a file, or a link to one; a link that leads in a circle is neither."""
    try:
        return entry.is_file()
    except OSError:
        return False


def holds_file(folder: Path) -> bool:
    """Say whether there is a finished file anywhere below ``folder``, however deep.

    A process that is killed before its first write ends leaves empty folders, which count as nothing. A folder that
    cannot be looked into counts as something.
    """
    folders = [folder]
    while folders:
        try:
            entries = list(visible(folders.pop()))
        except OSError:
            return True
        if not all(entry.is_dir(follow_symlinks=False) for entry in entries):
            return True
        folders += [Path(entry.path) for entry in entries]
    return False
