"""Choosing among things that are counted: ``"3"``, ``"-1"``, ``"*"`` or ``"4-8"`` of some blocks or heads."""

from __future__ import annotations

from mi_crow_lightning.errors import LayerNotFound

__all__ = ["WHICH", "chosen", "index_at"]

WHICH = r"\*|-?\d+(-\d+)?"
"""The form of a choice, as a regular expression."""


def chosen(which: str, count: int, signature: str, whose: str) -> range:
    """Return the indices that a choice means.

    Args:
        which: the choice, of the form `WHICH`.
        count: how many things there are.
        signature: what the choice is part of, for messages.
        whose: what messages say before the allowed indices, such as ``"the model has 12 blocks"``.

    Raises:
        LayerNotFound: there are fewer things, or a range is empty.

    Examples:
        >>> list(chosen("2-4", 12, "block:2-4", "")), list(chosen("-1", 12, "block:-1", ""))
        ([2, 3, 4], [11])
    """
    if which == "*":
        return range(count)
    if which.count("-") == 0 or (which.startswith("-") and which.count("-") == 1):
        index = index_at(int(which), count, signature, whose)
        return range(index, index + 1)
    if which.startswith("-"):
        raise LayerNotFound(f"layer {signature!r}: a range counts from the beginning: write it as in '4-8'")
    first, last = (int(part) for part in which.split("-"))
    if first > last:
        raise LayerNotFound(f"layer {signature!r}: the range is empty, {first} comes after {last}")
    index_at(last, count, signature, whose)
    return range(first, last + 1)


def index_at(index: int, count: int, signature: str | int, whose: str) -> int:
    """Return an index counted from the beginning; a negative one counts from the end.

    Raises:
        LayerNotFound: there are fewer things.
    """
    if not -count <= index < count:
        raise LayerNotFound(f"layer {signature!r}: {whose}, 0 to {count - 1} (or -1 to -{count})")
    return index % count
