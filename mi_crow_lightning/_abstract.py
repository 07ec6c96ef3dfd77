"""Base classes that cannot be made, where a subclass may override one of several methods.

`abc.abstractmethod` would ask a subclass for one certain method.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _C = TypeVar("_C", bound=type)

__all__ = ["abstract"]


def abstract(*methods: str) -> Callable[[_C], _C]:
    """Let nobody make an instance of a class itself; of any class below it they can.

    Python refuses it with the words that it has for every abstract class, `inspect.isabstract` knows of it, and
    jsonargparse leaves it out of the classes that its help lists.

    Args:
        *methods: what the message says to override, of several ways the simplest.

    Examples:
        >>> @abstract("edit")
        ... class Base: ...
        >>> class Own(Base): ...
        >>> Base()
        Traceback (most recent call last):
        TypeError: Can't instantiate abstract class Base with...
        >>> isinstance(Own(), Base)
        True
    """

    def mark(cls: _C) -> _C:
        # Set here, not written in the class, and without ABCMeta: both would pass on to the classes below.
        setattr(cls, "__abstractmethods__", frozenset(methods))  # noqa: B010
        return cls

    return mark
