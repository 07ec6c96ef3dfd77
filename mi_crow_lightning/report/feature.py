"""A thing that a run may use, such as a precision, and whether hooks work with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Feature", "Support"]


class Support(str, Enum):
    """How well hooks work with a thing that a run uses."""

    NOT_USED = "-"
    SUPPORTED = "supported"
    DEGRADED = "degraded"
    UNTESTED = "untested"
    REFUSED = "refused"


@dataclass(frozen=True)
class Feature:
    """A thing that a run may use.

    Attributes:
        name: its name, e.g. ``"precision"``.
        value: the one that the run uses, e.g. ``"bf16-mixed"``; ``"none"`` if it uses none.
        support: whether hooks work with it.
        note: what is degraded, why it is refused, or what else to know.
    """

    name: str
    value: str
    support: Support
    note: str = ""

    @classmethod
    def unused(cls, name: str) -> Feature:
        """Return the feature of a run that does not use it."""
        return cls(name, "none", Support.NOT_USED)
