"""The hook that runs in this thread: a pass that a hook starts runs the model without hooks.

Hooks in such a pass would call themselves forever, and its end would be taken for the end of the outer pass.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

__all__ = ["in_a_hook", "running"]


class _Thread(threading.local):
    """The state of one thread.

    Attributes:
        context: the `HookContext` of the running hook; ``None`` while no hook runs.
    """

    context: Any = None


running = _Thread()


def in_a_hook() -> bool:
    """Return whether a hook is running in this thread. In a graph that is being compiled nothing is noted."""
    return not torch.compiler.is_compiling() and running.context is not None
