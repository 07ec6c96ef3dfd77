"""Questions about other threads of the process."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from torch import nn

__all__ = ["frame_of_call", "is_over", "modules_being_called", "thread_name"]

_CALL = nn.Module._call_impl.__code__


def thread_name(ident: int) -> str:
    """Return the name of a thread, or its number if Python did not start it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return names.get(ident, str(ident))


def frame_of_call() -> FrameType | None:
    """Return the frame of the innermost call of a module in this thread; ``None`` if it is not in one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back
    return frame


def is_over(frame: FrameType) -> bool:
    """Return whether a frame of any thread has ended; its local variables are then dropped.

    The stack of a thread that is running must not be gone through from another one: it changes meanwhile, and Python
    3.11 was seen to give something other than a frame. Clearing a frame that is running is refused, and safe.
    """
    try:
        frame.clear()
    except RuntimeError:
        return False
    return True


def modules_being_called() -> list[nn.Module]:
    """Return the modules that this thread is calling, innermost first."""
    found: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            found.append(frame.f_locals["self"])
        frame = frame.f_back
    return found
