"""The messages and tracebacks of errors, at a length that can be read, whatever the errors do when they are asked."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

__all__ = ["in_a_notebook", "message_of", "traceback_of"]

_CHARACTERS = 2000  # of a message
_FIRST, _LAST = 8, 32  # lines of a traceback that is longer than both

# Packages whose frames a notebook leaves out: a call goes through dozens of them on its way to a hook.
_BETWEEN = ("IPython", "lightning", "lightning_fabric", "mi_crow_lightning", "pytorch_lightning", "torch")


def message_of(error: BaseException) -> str:
    """Return an error's message, whatever its own ``__str__`` does: one failure must not hide another.

    Examples:
        >>> message_of(ValueError("too wide"))
        'too wide'
    """
    try:
        message = str(error)
    except Exception as failure:
        return f"(its message cannot be shown: its __str__ raised {type(failure).__name__})"
    more = len(message) - _CHARACTERS
    return message if more <= 0 else f"{message[:_CHARACTERS]}... ({more:,} more characters)"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error and of what led to it; the middle of a long one is left out."""
    try:
        lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    except Exception:  # an error may answer none of the questions that torch's or Python's own code asks
        return f"{type(error).__name__}: {message_of(error)}"
    left_out = len(lines) - _FIRST - _LAST
    if left_out > 0:
        lines[_FIRST:-_LAST] = [f"  ... ({left_out:,} more lines)"]
    return "\n".join(line if len(line) <= _CHARACTERS else f"{line[:_CHARACTERS]}..." for line in lines)


def in_a_notebook(error: BaseException) -> list[str]:
    """Return the lines that a notebook shows of an error: the user's frames, and the causes, first to last."""
    lines: list[str] = []
    for link in reversed(list(_chain(error))):
        lines += ["Traceback (most recent call last):", *_frames(link), f"{_name(link)}: {message_of(link)}", ""]
    return lines[:-1]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what led to it, what led to that, and so on, up to the eighth."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__ if link.__cause__ is not None or link.__suppress_context__ else link.__context__


def _frames(error: BaseException) -> list[str]:
    """Return the frames of the user's code, and a line for those between."""
    shown: list[str] = []
    between: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in _BETWEEN:
            between.append(package)
            continue
        shown += _left_out(between)
        between = []
        code = frame.f_code
        summary = traceback.FrameSummary(code.co_filename, line, code.co_name)
        shown += traceback.format_list([summary])[0].rstrip().splitlines()
    shown += _left_out(between)
    more = len(shown) - _FIRST - _LAST
    return shown if more <= 0 else [*shown[:_FIRST], f"  ... ({more:,} more lines)", *shown[-_LAST:]]


def _left_out(between: list[str]) -> list[str]:
    return [f"  ... (through {', '.join(sorted(set(between)))}: {len(between)} frames)"] if between else []


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
