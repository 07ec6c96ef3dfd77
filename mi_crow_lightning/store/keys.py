"""Names of runs, layers, keys and batches as file names: used as they are, or refused."""

from __future__ import annotations

import os
import re

from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import StoreKeyError

__all__ = ["SUFFIX", "batch_file_name", "batch_folder_name", "check_name", "read_batch_name", "split_path"]

SUFFIX = ".safetensors"

_MOST_BYTES = 255
_LAST_INDEX = 2**63 - 1
# What Windows takes for a device, with any ending, so that a store can be copied there; as in Python's ntpath.
_DEVICES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789\xb9\xb2\xb3"
}
_ON_WINDOWS = os.name == "nt"
_NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\x00-\x1f]')  # "a:b" would be written into a hidden part of "a"
_BATCH = re.compile(r"batch_([0-9]{1,19})(\.safetensors)?", re.ASCII)


def check_name(kind: str, name: object, *, suffix: str = "", reserved: str | None = None) -> str:
    """Return ``name`` unchanged if it can be one file name inside the store.

    Names are never rewritten, so what is listed later is what was given.

    Args:
        kind: what the name is, for the message: ``"run_id"``, ``"layer"``, ``"key"``.
        name: the name to check.
        suffix: how the file name will end; it counts towards the length.
        reserved: a file name that the store itself uses in that folder.

    Raises:
        StoreKeyError: the name is not a string, is empty, too long, starts with a dot, holds a path separator or a
            NUL, or is one that Windows would take for another; on Windows also, if it holds one of ``<>:"|?*``.

    Examples:
        >>> check_name("layer", "transformer.h.0.attn")
        'transformer.h.0.attn'
    """
    limit = _MOST_BYTES - len(suffix)
    if not isinstance(name, str):
        fault: str | None = f"is a {type(name).__name__}, not a str"
    elif (fault := _fault(name, limit, reserved) or _fault_on_windows(name, suffix)) is None:
        return name
    raise StoreKeyError(
        f"{kind} {shown(name, 400)} cannot be a name in the store: it {fault}. Allowed: a non-blank str of "
        f"at most {limit} bytes that does not start with '.', holds no '/', '\\' or NUL, and is a name on Windows, too."
    )


def _fault(name: str, limit: int, reserved: str | None) -> str | None:
    if not name.strip():
        return "is empty"
    if name.startswith("."):
        return "starts with '.'"
    if name.startswith(("/", "\\")):
        return "is absolute"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if "\0" in name:
        return "holds a NUL"
    # Some file systems ignore case, where "Metadata.json" would overwrite "metadata.json".
    if reserved is not None and name.casefold() == reserved:
        return f"is kept for the store's own {reserved}"
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return f"takes {size} bytes" if size > limit else None


def _fault_on_windows(name: str, suffix: str) -> str | None:
    """Return what is wrong with a name on Windows, which would write it under another one."""
    if name.partition(".")[0].rstrip(" ").casefold() in _DEVICES:
        return "is a device on Windows"
    if (name + suffix).endswith((" ", ".")):
        return "ends in a space or '.', which Windows leaves out"
    if _ON_WINDOWS and (found := _NOT_ON_WINDOWS.search(name)):
        return f"holds {found[0]!r}, which Windows does not allow"
    return None


def split_path(key: object) -> tuple[str, ...]:
    """Split ``"a/b/c"`` into its names, each of them checked.

    Raises:
        StoreKeyError: ``key`` is not a string, is absolute, or one of its parts is refused.

    Examples:
        >>> split_path("vectors/layer.3")
        ('vectors', 'layer.3')
    """
    if not isinstance(key, str) or not key or key.startswith("/"):
        return (check_name("key", key),)
    try:
        return tuple(check_name("part", part) for part in key.split("/"))
    except StoreKeyError as error:
        raise StoreKeyError(f"key {shown(key)} would not stay in the store's folder: {error}") from error


def batch_folder_name(batch_index: object) -> str:
    """Return the name of the folder that holds the layers of a batch, ``"batch_3"``.

    Raises:
        StoreKeyError: the index is negative, too large, a bool, or not an int.
    """
    return f"batch_{_checked_index(batch_index)}"


def batch_file_name(batch_index: object) -> str:
    """Return the name of the file that holds a whole batch, ``"batch_000003.safetensors"``.

    Raises:
        StoreKeyError: see `batch_folder_name`.
    """
    return f"batch_{_checked_index(batch_index):06d}{SUFFIX}"


def _checked_index(batch_index: object) -> int:
    if isinstance(batch_index, int) and not isinstance(batch_index, bool) and 0 <= batch_index <= _LAST_INDEX:
        return batch_index
    raise StoreKeyError(f"batch_index must be an int >= 0 (and below 2**63), not a bool; got {shown(batch_index)}")


def read_batch_name(name: str) -> int | None:
    """Read the index back from the name of a batch's folder or file; ``None`` for any other name.

    Examples:
        >>> read_batch_name("batch_12"), read_batch_name("batch_000012.safetensors")
        (12, 12)
        >>> read_batch_name("batch_012") is None
        True
    """
    match = _BATCH.fullmatch(name)
    if match is None or (index := int(match[1])) > _LAST_INDEX:
        return None
    # Only the spelling that the store itself writes can be found again by index.
    spelled = batch_file_name(index) if match[2] else batch_folder_name(index)
    return index if spelled == name else None
