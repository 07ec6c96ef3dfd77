"""Logging at info level: on rank 0, and shown wherever Lightning's own messages are shown."""

from __future__ import annotations

import logging

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["log_info"]

_log = logging.getLogger("mi_crow_lightning")


@rank_zero_only
def log_info(text: str) -> None:
    """Log ``text``; if nobody set up logging, it goes where Lightning's own messages go."""
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.INFO)
    if not _log.hasHandlers():
        _log.handlers = list(logging.getLogger("lightning.pytorch").handlers)
        _log.propagate = False
    _log.info(text)
