"""Values as messages show them: on one line, and short, whatever they are."""

from __future__ import annotations

__all__ = ["cut", "name_of", "shortened", "shown"]

_MOST = 160  # characters of a value: a message names several, and stays below 2 kB


def shown(value: object, most: int = _MOST) -> str:
    """Return ``repr(value)`` on one line, cut where it is long, whatever the value is and its ``__repr__`` does.

    Examples:
        >>> shown("last"), shown("x" * 1000, most=40)
        ("'last'", "'xxxxxxxxxxxxxxxxx... (1,002 characters)")
    """
    try:
        text = repr(value)
    except Exception as failure:  # as of an integer with 5,000 digits, or of lists as deep
        return f"(a {type(value).__name__} that cannot be shown: {type(failure).__name__})"
    if "\n" in text:
        text = " ".join(text.split())
    return cut(text, most)


def name_of(function: object, most: int = 80) -> str:
    """Return the name of a function, or what else shows a callable, on one line and short.

    Examples:
        >>> name_of(len), name_of(lambda x: x)
        ('<len>', '<lambda>')
    """
    name = getattr(function, "__name__", None)
    return f"<{cut(name.strip('<>'), most)}>" if isinstance(name, str) else shown(function, most)


def cut(text: str, most: int) -> str:
    """Return a text, or its beginning and how long it is."""
    end = f"... ({len(text):,} characters)"
    return text if len(text) <= most else text[: max(most - len(end), 0)] + end


def shortened(text: str, most: int = 200) -> str:
    """Return a text in at most that many bytes of UTF-8: the ends of one that is longer.

    Examples:
        >>> shortened("short"), shortened("x" * 5000, 11)
        ('short', 'xxxx...xxxx')
    """
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most:
        return data.decode()
    half = (most - 3) // 2
    return data[:half].decode(errors="ignore") + "..." + data[-half:].decode(errors="ignore")
