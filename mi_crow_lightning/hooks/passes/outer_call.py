"""The outermost call around watched layers: its arguments, and where its random numbers began.

Whoever wants to repeat a call must have been there when it began. The handles are on the model only while they are
asked for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.handles import NO_KEYWORDS, Handle, InertWhenCopied, Rank, attach
from mi_crow_lightning.hooks.passes.reentrancy import running
from mi_crow_lightning.hooks.passes.second_pass import RandomState

__all__ = ["OuterCall", "OuterCalls"]

_LATE = 2**62  # after all our other callables of a rank


class OuterCall:
    """One running call.

    Attributes:
        module: what was called.
        args: its positional arguments.
        kwargs: its keywords.
        start: the random numbers' state when it began.
        output: what it returned; ``None`` while it runs.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        devices = {parameter.device for parameter in module.parameters()}
        self.start = RandomState.now(devices)
        self.output: Any = None
        self._versions = [(value, value._version) for value in self._tensors() if not value.is_inference()]

    def wrote_to_inputs(self) -> bool:
        """Return whether the call has written to a tensor that it was given."""
        return any(value._version != version for value, version in self._versions)

    def cache(self) -> Any:
        """Return a cache of keys and values that the call was given, which a second call would change; or ``None``."""
        values = (*self.args, *self.kwargs.values())
        return next((value for value in values if hasattr(value, "get_seq_length")), None)

    def _tensors(self) -> Iterator[Tensor]:
        for value in (*self.args, *self.kwargs.values()):
            yield from (one for one in (value.values() if isinstance(value, dict) else [value]) if torch.is_tensor(one))


class OuterCalls:
    """Follows the outermost calls of some modules, while it is attached.

    Args:
        begins: called when a call begins, and when one broke off.
        ended: called with each call that has returned.
    """

    def __init__(self, begins: Callable[[], None], ended: Callable[[OuterCall], None]) -> None:
        self.running: OuterCall | None = None
        self._begins, self._ended = begins, ended
        self._thread = 0
        self._handles: list[Handle] = []

    def attach(self, modules: Iterable[nn.Module]) -> None:
        """Follow calls of ``modules``; doing so twice is harmless."""
        for module in () if self._handles else modules:
            self._handles.append(attach(module, _Enter(self), HookType.PRE_FORWARD))
            self._handles.append(attach(module, _Leave(self), HookType.FORWARD, always_call=True))

    def detach(self) -> None:
        """Follow no calls, and forget the running one; doing so twice is harmless."""
        self.running = None
        while self._handles:
            self._handles.pop().remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a module is called."""
        current = self.running
        if current is None or (module is current.module and threading.get_ident() == self._thread):  # left by a Ctrl-C
            self._begins()
            self.running, self._thread = OuterCall(module, args, dict(kwargs)), threading.get_ident()

    def leave(self, module: nn.Module, output: Any) -> None:
        """Note that a module returned, or raised."""
        current = self.running
        if current is None or current.module is not module or threading.get_ident() != self._thread:
            return
        try:
            if output is not None or sys.exc_info()[0] is None:
                current.output = output
                self._ended(current)
            else:
                self._begins()
        finally:
            self.running = None


class _Enter(InertWhenCopied):
    order = (Rank.ENTER, _LATE)

    def __init__(self, calls: OuterCalls) -> None:
        self._calls = calls

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KEYWORDS) -> None:
        if _is_first_run():
            self._calls.enter(module, args, kwargs)


class _Leave(InertWhenCopied):
    order = (Rank.OBSERVE, _LATE)  # before the pass is over, so that an error is one of the pass

    def __init__(self, calls: OuterCalls) -> None:
        self._calls = calls

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any = None) -> None:
        if _is_first_run():
            self._calls.leave(module, output)


def _is_first_run() -> bool:
    """Return whether this is neither a recompute nor a pass that a hook runs."""
    return not torch.compiler.is_compiling() and running.context is None and torch._C._current_graph_task_id() == -1
