"""A table of texts for the loggers that take text: TensorBoard, and those with Lightning's ``log_text``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from mi_crow_lightning.loggers.tensorboard import summary_writer

__all__ = ["TextLogger", "markdown_table", "takes_text", "write_text_table"]

# What HTML has no place for, and TensorBoard drops: control characters, and Unicode's noncharacters.
_LAST_OF_PLANES = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_NOT_IN_HTML = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef{_LAST_OF_PLANES}]")


@runtime_checkable
class TextLogger(Protocol):
    """A logger that shows tables of texts, as Lightning's ``WandbLogger`` does."""

    def log_text(self, key: str, columns: list[str], data: list[list[str]], *, step: int | None = None) -> Any:
        """Log a table."""


def takes_text(logger: object) -> bool:
    """Return whether `write_text_table` can write to a logger; on ranks other than 0, ``False`` for TensorBoard's."""
    return isinstance(logger, TextLogger) or summary_writer(logger) is not None


def write_text_table(
    loggers: Iterable[object], tag: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """Write a table of texts to every logger that takes text.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``.
        tag: the name of the table.
        columns: the titles of the columns.
        rows: the rows, each with as many texts as there are columns.
        step: the position on the x axis.

    Examples:
        >>> class Printer:
        ...     def log_text(self, key, columns, data, *, step=None):
        ...         print(step, key, columns, data)
        >>> write_text_table([Printer()], "predict/texts", ["prompt", "text"], [["Rain", " fell"]], step=3)
        3 predict/texts ['prompt', 'text'] [['Rain', ' fell']]
    """
    for logger in loggers:
        writer = summary_writer(logger)
        if writer is not None:
            writer.add_text(tag, markdown_table(columns, rows), step)
        elif isinstance(logger, TextLogger):
            logger.log_text(tag, list(columns), [list(row) for row in rows], step=step)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown that shows texts as they are, whatever Markdown they may contain.

    Examples:
        >>> print(markdown_table(["prompt", "text"], [["Rain", "a | b"]]))
        | prompt | text |
        | --- | --- |
        | Rain | a &#124; b |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells if i == 1 else map(_literal, cells))} |" for i, cells in enumerate(lines))


def _literal(text: str) -> str:
    """Return ``text`` with line breaks, and an entity for each character that means something in Markdown or HTML."""
    text = _NOT_IN_HTML.sub("\ufffd", text)
    escaped = re.sub(r"[^\w\s.,;:?\ufffd]|_", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"\r\n|\r|\n", "<br>", escaped)
