"""The messages of errors that others raise."""

from __future__ import annotations

__all__ = ["message_of"]


def message_of(error: BaseException) -> str:
    """Return an error's message, whatever its own ``__str__`` does: one failure must not hide another.

    Examples:
        >>> message_of(ValueError("too wide"))
        'too wide'
    """
    try:
        return str(error)
    except Exception as failure:
        return f"(its message cannot be shown: its __str__ raised {type(failure).__name__})"
