"""The search for the pass that gradient checkpointing repeats.

A recompute runs while a node of the original graph runs backward. Autograd numbers nodes in the order in which a thread
makes them, so the node's number lies between the numbers at the start and at the end of its call. The backward pass may
run in a different thread from the forward pass, so all threads see the calls that are kept here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import torch

from mi_crow_lightning.hooks.passes.facts import PassFacts

__all__ = ["EndedCalls", "next_node"]

_REMEMBERED = 32  # calls of a module before a backward pass; older ones are lost, and hooks that need them raise


class _Ended(NamedTuple):
    start: int
    end: int
    thread: object
    facts: PassFacts


class EndedCalls:
    """The last calls of one token module that recorded gradients."""

    def __init__(self) -> None:
        self._ended: deque[_Ended] = deque(maxlen=_REMEMBERED)

    @property
    def is_empty(self) -> bool:
        """Whether no call was kept."""
        return not self._ended

    def add(self, start: int, thread: object, facts: PassFacts) -> None:
        """Keep a call that has just ended.

        Args:
            start: the number of its first node.
            thread: an object that only this thread has. (The system reuses the number of a thread that has ended.)
            facts: the facts of the call.
        """
        self._ended.append(_Ended(start, next_node(), thread, facts))

    def forget(self, threads: Collection[object]) -> None:
        """Forget the calls of some threads."""
        if self._ended:
            self._ended = deque((call for call in self._ended if call.thread not in threads), maxlen=_REMEMBERED)

    def repeated(self) -> PassFacts | None:
        """Return the facts of the call that is repeated; ``None`` if it is not known.

        Each thread numbers its own nodes, and a node does not say which thread made it: if calls of several threads
        match, the call is not known.
        """
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else -1
        fitting = [call for call in list(self._ended) if call.start <= number < call.end]
        return fitting[-1].facts if fitting and all(call.thread is fitting[0].thread for call in fitting) else None


def next_node() -> int:
    """Return the number that the next autograd node of this thread will get."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number
