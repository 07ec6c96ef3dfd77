"""Saying something at info level: on rank 0, and as visibly as Lightning speaks."""

from __future__ import annotations

import logging

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["tell"]

_log = logging.getLogger("mi_crow_lightning")


@rank_zero_only
def tell(text: str) -> None:
    """Log ``text``; where nobody set up logging it goes where Lightning's own messages go."""
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.INFO)
    if not _log.hasHandlers():
        _log.handlers = list(logging.getLogger("lightning.pytorch").handlers)
        _log.propagate = False
    _log.info(text)
