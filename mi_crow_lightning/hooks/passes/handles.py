"""Functions that attach callables to modules: the only code that adds and removes torch handles.

torch calls the hooks of a module in the order in which they were added. Our hooks come and go with the
schedule, so their rank decides the order instead: whenever a callable is attached, those of ours that
must run after it are moved behind it. Handles of others are never removed and keep their identity.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.compiled_module import Outside, outside_of

__all__ = ["NO_KEYWORDS", "Handle", "InertWhenCopied", "Rank", "attach"]

NO_KEYWORDS: dict[str, Any] = {}
"""Stands for a call's keywords if somebody cleared torch's list of who gets them: the batch's end reports that."""


class Rank(IntEnum):
    """The order in which our callables on one module and hook type run."""

    ENTER = 0
    OBSERVE_BEFORE_EDITS = 1
    EDIT = 2
    OBSERVE = 3
    LEAVE = 4


def no_op(*args: Any, **kwargs: Any) -> None:
    """Do nothing: a copied or pickled model carries this in place of a hook."""


def _make_no_op() -> Callable[..., None]:
    return no_op


class InertWhenCopied:
    """A callable for torch whose deep copy or pickle does nothing.

    A deep copy, an EMA or a saved copy of a watched model must carry no live hook: its passes would be
    counted as ours, and the copy would include the hook's owner.

    Attributes:
        order: ``(rank, sequence)``: this callable's place among our callables on a module.
    """

    order: tuple[int, int]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_make_no_op, ())


class Handle:
    """A callable of ours on a module: torch's handle, and whether torch still calls it.

    Anyone may clear or replace a module's dicts of hooks, and torch does not report that.

    Args:
        module: the module.
        callback: the callable on it.
        handle: torch's handle.
        hook_type: before or after the module's forward.
        always_call: whether it is also called if the forward raised.
    """

    __slots__ = ("_always_call", "_callback", "_forward", "_handle", "_module")

    def __init__(
        self, module: nn.Module, callback: Any, handle: RemovableHandle, hook_type: HookType, always_call: bool
    ) -> None:
        self._module = module
        self._callback = callback
        self._handle = handle
        self._forward = hook_type is HookType.FORWARD
        self._always_call = always_call

    @property
    def in_place(self) -> bool:
        """Whether torch calls the callable as it was attached: with keywords, and where wanted after an error too."""
        module, own = self._module, self._handle.id
        if isinstance(module, Outside) and not module.in_place:
            return False
        if not self._forward:
            return module._forward_pre_hooks.get(own) is self._callback and own in module._forward_pre_hooks_with_kwargs
        always = not self._always_call or own in module._forward_hooks_always_called
        return module._forward_hooks.get(own) is self._callback and own in module._forward_hooks_with_kwargs and always

    def remove(self) -> None:
        """Take the callable off; doing so twice is harmless."""
        self._handle.remove()
        module = self._module
        hooks = module._forward_hooks if self._forward else module._forward_pre_hooks
        if hooks:  # torch removes it from the dict that the module had when it was attached
            for own in [key for key, value in hooks.items() if value is self._callback]:
                del hooks[own]
        if isinstance(module, Outside):
            module.leave_if_unused()


def attach(
    module: nn.Module,
    callback: InertWhenCopied,
    hook_type: HookType,
    *,
    always_call: bool = False,
    outside: bool = False,
) -> Handle:
    """Attach ``callback`` to ``module``, in its place among our callables there.

    Args:
        module: the module to attach to.
        callback: called as ``(module, args, kwargs)`` before, or ``(module, args, kwargs, output)`` after.
        hook_type: before or after the module's forward.
        always_call: also call it if the forward raised (only for a hook after the forward).
        outside: if ``module`` was compiled in place, attach outside its graph.

    Returns:
        A handle whose ``remove()`` may be called more than once.
    """
    if not callable(callback):
        raise TypeError(f"{type(callback).__name__} is not callable")
    if outside and module._compiled_call_impl is not None:
        callback = _On(module, callback)
        module = outside_of(module)
    handle: RemovableHandle
    hooks: dict[int, Any]
    if hook_type is HookType.PRE_FORWARD:
        handle = module.register_forward_pre_hook(callback, with_kwargs=True)
        hooks = module._forward_pre_hooks
    else:
        handle = module.register_forward_hook(callback, with_kwargs=True, always_call=always_call)
        hooks = module._forward_hooks
    if len(hooks) > 1:  # else there is nothing to put in order
        _move_later_ones_behind(hooks, callback)
    return Handle(module, callback, handle, hook_type, always_call)


class _On(InertWhenCopied):
    """A callback that gets another module than the one it is attached to."""

    def __init__(self, module: nn.Module, callback: Any) -> None:
        self.order = callback.order
        self._module, self._callback = module, callback

    def __call__(self, module: nn.Module, *call: Any) -> Any:
        return self._callback(self._module, *call)


def _move_later_ones_behind(hooks: dict[int, Any], callback: InertWhenCopied) -> None:
    later = [
        (other.order, handle_id)
        for handle_id, other in hooks.items()
        if isinstance(other, InertWhenCopied) and other.order > callback.order
    ]
    for _, handle_id in sorted(later):
        hooks[handle_id] = hooks.pop(handle_id)  # to the end
