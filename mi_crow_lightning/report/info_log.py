"""Logging at info level: on rank 0, and shown wherever the Trainer's own messages are shown."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mi_crow_lightning.metrics.collectives import is_first_rank

__all__ = ["log_info"]

_log = logging.getLogger("mi_crow_lightning")
_OF_TRAINERS = ("lightning.pytorch", "transformers")  # the loggers of their messages


def log_info(text: str, styled: Callable[[], Sequence[Any]] | None = None) -> None:
    """Log ``text`` on rank 0; if nobody set up logging, it goes where the Trainer's own messages go.

    Args:
        text: what is logged.
        styled: returns the same as parts for rich, which handlers that write to a terminal get. All others, such as
            those of files, get the text.
    """
    if not is_first_rank():
        return
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.INFO)
    if not _log.hasHandlers():
        loggers = map(logging.getLogger, _OF_TRAINERS)
        _log.handlers = next((list(one.handlers) for one in loggers if one.handlers), [])
        _log.propagate = False
    if styled is None or not _log.isEnabledFor(logging.INFO) or not any(map(_is_terminal, _handlers())):
        _log.info(text)
        return
    try:
        parts = styled()
    except ImportError:  # rich is not installed
        _log.info(text)
        return
    _log_by_handler(text, parts)


def _log_by_handler(text: str, parts: Sequence[Any]) -> None:
    """Do what ``_log.info(text)`` does, with another message for terminals."""
    record = _log.makeRecord(_log.name, logging.INFO, __file__, 0, text, (), None, "log_info")
    if not _log.filter(record):
        return
    for handler in _handlers():
        if record.levelno >= handler.level:
            message = copy.copy(record)  # a formatter may write to it
            if _is_terminal(handler):
                message.msg = _rendered(parts, handler)
            handler.handle(message)


def _handlers() -> Iterator[logging.Handler]:
    """Yield the handlers that a message of this logger reaches."""
    logger: logging.Logger | None = _log
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _is_terminal(handler: logging.Handler) -> bool:
    isatty = getattr(getattr(handler, "stream", None), "isatty", None)
    return isinstance(handler, logging.StreamHandler) and isatty is not None and bool(isatty())


def _rendered(parts: Sequence[Any], handler: logging.Handler) -> str:
    from rich.console import Console

    console = Console(file=handler.stream, force_jupyter=False)  # type: ignore[attr-defined]
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return capture.get().rstrip("\n")
