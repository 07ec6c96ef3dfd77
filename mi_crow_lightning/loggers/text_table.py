"""A table of texts to the loggers that take text: TensorBoard, and those with Lightning's ``log_text``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from mi_crow_lightning.loggers.tensorboard import summary_writer

__all__ = ["TextLogger", "markdown_table", "takes_text", "write_text_table"]


@runtime_checkable
class TextLogger(Protocol):
    """A logger with a table of texts of its own; Lightning's ``WandbLogger`` is one."""

    def log_text(self, key: str, columns: list[str], data: list[list[str]], *, step: int | None = None) -> Any:
        """Log a table."""


def takes_text(logger: object) -> bool:
    """Whether `write_text_table` can write to a logger. On ranks other than 0 TensorBoard's cannot be told."""
    return isinstance(logger, TextLogger) or summary_writer(logger) is not None


def write_text_table(
    loggers: Iterable[object], tag: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """Write a table of texts to every logger that takes text.

    Args:
        loggers: Lightning loggers, e.g. ``trainer.loggers``.
        tag: the name it is found under.
        columns: their titles.
        rows: each with as many texts as there are columns.
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
    """The table in markdown; texts are shown as they are, whatever markdown would make of them.

    Examples:
        >>> print(markdown_table(["prompt", "text"], [["Rain", "a | b"]]))
        | prompt | text |
        | --- | --- |
        | Rain | a &#124; b |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells if i == 1 else map(_literal, cells))} |" for i, cells in enumerate(lines))


def _literal(text: str) -> str:
    """``text`` with line breaks, and with an entity for each character that markdown or HTML could take up."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)  # control characters: HTML has none
    escaped = re.sub(r"[^\w\s.,;:?\ufffd]|_", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"\r\n|\r|\n", "<br>", escaped)
