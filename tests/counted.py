"""Counts of what a piece of work does, for tests of costs: unlike its time, a count is the same on every machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Operations", "calls_in", "few_objects", "operations_in", "tensors_alive"]


def calls_in(work: Callable[[], object], of: Callable[..., object] | None = None) -> int:
    """Count the calls of Python's functions and of C's, one in a loop each time; or those of one function of Python."""
    count, code = 0, getattr(of, "__code__", None)

    def note(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call") if code is None else event == "call" and frame.f_code is code

    before, collects = sys.getprofile(), gc.isenabled()
    gc.collect()
    gc.disable()  # else the finalizers of what other tests left would count
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return count


class Operations(TorchDispatchMode):
    """A count of torch's operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations_in(work: Callable[[], object]) -> int:
    """Count torch's operations."""
    with Operations() as operations:
        work()
    return operations.count


def tensors_alive() -> list[Tensor]:
    """Return the tensors of this process; inside `few_objects`, those made since."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


@contextmanager
def few_objects() -> Iterator[None]:
    """Leave out of collections, and of counts, what is alive now: torch alone is a million objects."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
