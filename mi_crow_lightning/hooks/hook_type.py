"""The two places where a hook can stand: before a layer, or after it."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from mi_crow_lightning._arguments import one_of
from mi_crow_lightning.choices import HookTypeName

__all__ = ["HookType", "HookTypeLike"]


class HookType(str, Enum):
    """The place of a hook: ``FORWARD`` after the layer, ``PRE_FORWARD`` before it.

    Examples:
        >>> HookType.of("pre_forward")
        <HookType.PRE_FORWARD: 'pre_forward'>
    """

    FORWARD = "forward"
    PRE_FORWARD = "pre_forward"

    @classmethod
    def of(cls, value: HookTypeLike) -> HookType:
        """Return the hook type that ``value`` names.

        Raises:
            ValueError: ``value`` does not name a hook type.
        """
        return cls(one_of("hook_type", value, [member.value for member in cls]))


HookTypeLike: TypeAlias = HookType | HookTypeName
"""A hook type, or its name."""
