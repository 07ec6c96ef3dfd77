"""Whether a hook is running: a pass that it starts itself is the bare model's.

Hooks in such a pass would call themselves without end, and its end would be taken for that of the outer pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["as_hook", "in_a_hook"]

_T = TypeVar("_T")


class _Thread(threading.local):
    """What is so in one thread."""

    in_a_hook = False


_here = _Thread()


def as_hook(function: Callable[[], _T]) -> _T:
    """Call ``function``; while it runs, `in_a_hook` is true. In a graph that is being compiled nothing is noted."""
    if torch.compiler.is_compiling():
        return function()
    before, _here.in_a_hook = _here.in_a_hook, True
    try:
        return function()
    finally:
        _here.in_a_hook = before


def in_a_hook() -> bool:
    """Whether a hook is running in this thread."""
    return not torch.compiler.is_compiling() and _here.in_a_hook
