"""Questions about other threads of the process."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from torch import nn

__all__ = ["is_in_a_module", "modules_being_called", "thread_name"]

_CALL = nn.Module._call_impl.__code__


def thread_name(ident: int) -> str:
    """Return the name of a thread, or its number if Python did not start it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return names.get(ident, str(ident))


def is_in_a_module(ident: int) -> bool:
    """Return whether a thread is in the call of any module, as far as its stack shows."""
    frame: FrameType | None = sys._current_frames().get(ident)
    while frame is not None:
        if frame.f_code is _CALL:
            return True
        frame = frame.f_back
    return False


def modules_being_called() -> list[nn.Module]:
    """Return the modules that this thread is calling, innermost first."""
    found: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            found.append(frame.f_locals["self"])
        frame = frame.f_back
    return found
