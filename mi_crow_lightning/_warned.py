"""Warnings of this package, which a run also notes for its log.

Whoever warns calls `warn` in place of ``warnings.warn``. What is heard, and how often, stays the business of Python's
warning filters alone: a text is noted before they are asked, and none of them is changed.
"""

from __future__ import annotations

import warnings
from typing import Protocol
from weakref import WeakSet

from mi_crow_lightning.warnings import MiCrowWarning

__all__ = ["Listener", "listeners", "noted", "warn"]


class Listener(Protocol):
    """Whatever wants to know the texts."""

    def warned(self, text: str) -> None:
        """Note the text of a warning; this may not fail."""


listeners: WeakSet[Listener] = WeakSet()
"""Those that listen now. One that is let go of stops to listen."""


def warn(text: str, category: type[MiCrowWarning] = MiCrowWarning, stacklevel: int = 1) -> None:
    """Warn as ``warnings.warn`` does, and let the listeners note the text.

    Args:
        text: the text.
        category: the kind of warning; the base class of all where no kind fits.
        stacklevel: 1 for the caller of this function, as in ``warnings.warn``.
    """
    warnings.warn(noted(text), category, stacklevel=stacklevel + 1)


def noted(text: str) -> str:
    """Return a text that somebody else's function warns with, after the listeners noted it."""
    for listener in tuple(listeners):
        listener.warned(text)
    return text
