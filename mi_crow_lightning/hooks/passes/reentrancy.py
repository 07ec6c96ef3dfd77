"""Which hook runs in this thread: a pass that a hook starts is the bare model's.

Hooks in such a pass would call themselves without end, and its end would be taken for that of the outer pass.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

__all__ = ["in_a_hook", "running"]


class _Thread(threading.local):
    """The state of one thread.

    Attributes:
        context: the `HookContext` of the hook that runs; ``None`` while none does.
    """

    context: Any = None


running = _Thread()


def in_a_hook() -> bool:
    """Return whether a hook is running in this thread. In a graph that is being compiled nothing is noted."""
    return not torch.compiler.is_compiling() and running.context is not None
