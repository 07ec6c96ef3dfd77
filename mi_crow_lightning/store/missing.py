"""The error for what is not in the store."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from mi_crow_lightning._foreign_files import named
from mi_crow_lightning._shown import shortened

__all__ = ["missing"]

_SHOWN = 10


def missing(what: str, name: str | int, available: Sequence[str | int], folder: Path) -> FileNotFoundError:
    """Build the error for a run, batch, layer or key that is not there; the caller raises it.

    Examples:
        >>> print(missing("layer", "h.1", ["h.0", "h.2"], Path("runs")))
        No layer 'h.1' in 'runs'; there are: 'h.0', 'h.2'. Closest: 'h.2'.
    """
    place = f"No {what} {shortened(repr(name))} in {named(folder)}"
    if not available:
        return FileNotFoundError(f"{place}: there is no {what} at all.")
    shown = shortened(", ".join(repr(one) for one in available[:_SHOWN]), 600)
    more = f" and {len(available) - _SHOWN} more" if len(available) > _SHOWN else ""
    close = get_close_matches(str(name), [str(one) for one in available if isinstance(one, str)], n=1)
    hint = f" Closest: {close[0]!r}." if close else ""
    return FileNotFoundError(f"{place}; there are: {shown}{more}.{hint}")
