"""Hooks outside a module that was compiled in place.

``module.compile()`` compiles a module together with its hooks. Hooks attached here are called around the compiled
call instead, in plain Python, so they may come and go and do anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["Outside", "outside_of"]


class Outside(nn.Module):
    """A stand-in for a module's compiled call, which it calls. A copy of the module has neither.

    Args:
        module: the module that was compiled in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["module"] = module  # not as a child: the module already refers to us
        self.compiled: Callable[..., Any] | None = module._compiled_call_impl

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled call."""
        assert self.compiled is not None, "the module was compiled"
        return self.compiled(*args, **kwargs)

    @property
    def in_place(self) -> bool:
        """Whether the module's calls still come here."""
        module: nn.Module = self.__dict__["module"]
        return module._compiled_call_impl is self

    def leave_if_unused(self) -> None:
        """Put the compiled call back when no hook is left."""
        unused = not self._forward_hooks and not self._forward_pre_hooks
        module: nn.Module = self.__dict__["module"]
        if unused and module._compiled_call_impl is self:
            module.__dict__["_compiled_call_impl"] = self.compiled


def outside_of(module: nn.Module) -> Outside:
    """Return the stand-in for the compiled call of ``module``, which was compiled in place; make it if needed."""
    if not isinstance(module._compiled_call_impl, Outside):
        # Not by assignment, which would make it a child.
        module.__dict__["_compiled_call_impl"] = Outside(module)
    outside = module._compiled_call_impl
    assert isinstance(outside, Outside)
    return outside
