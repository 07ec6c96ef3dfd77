"""Rows as a text table."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return the rows as columns under a header, two spaces apart, without the columns that are empty.

    Args:
        header: the columns' names.
        rows: the cells, as many in each row.
        right: the indices of the columns that are aligned on the right.

    Examples:
        >>> print(text_table(["layer", "size", "note"], [["h.0", "64", ""], ["h.10", "128", ""]], right=[1]))
        layer  size
        h.0      64
        h.10    128
    """
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    widths = {i: max(len(row[i]) for row in (header, *rows)) for i in kept}
    lines = []
    for row in (header, *rows):
        cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in kept]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
