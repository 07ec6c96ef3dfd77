"""Tables and sections as HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_section", "html_table"]


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as an HTML table under a header, without the columns that are empty.

    Args:
        header: the columns' names.
        rows: the cells as plain text, as many in each row.

    Examples:
        >>> html_table(["layer", "note"], [["h.<0>", ""]])
        '<table><thead><tr><th>layer</th></tr></thead><tbody><tr><td>h.&lt;0&gt;</td></tr></tbody></table>'
    """
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    head = _row("th", (header[i] for i in kept))
    body = "".join(_row("td", (row[i] for i in kept)) for row in rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def html_section(title: str, text: str, is_open: bool = True) -> str:
    """Return HTML under a title that can be folded.

    Args:
        title: plain text.
        text: HTML.
        is_open: whether it is shown at first.
    """
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{text}</details>"


def _row(cell: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"
