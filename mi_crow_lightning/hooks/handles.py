"""Attaching callables to modules: the only code that adds and removes torch handles.

torch calls the hooks of a module in the order in which they were added. Hooks here come and go with
the schedule, so the order is kept by rank instead: whenever a callable is attached, those of ours that
must run after it are moved behind it. Handles of others are never removed and keep their identity.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from mi_crow_lightning.hooks.hook_type import HookType

__all__ = ["InertWhenCopied", "Rank", "attach"]


class Rank(IntEnum):
    """Who runs first among our callables on one module and hook type."""

    ENTER = 0
    OBSERVE_BEFORE_EDITS = 1
    EDIT = 2
    OBSERVE = 3
    LEAVE = 4


def no_op(*args: Any, **kwargs: Any) -> None:
    """What a copied or pickled model carries in place of a hook."""


def _make_no_op() -> Callable[..., None]:
    return no_op


class InertWhenCopied:
    """A callable for torch whose deep copy, and whose pickle, does nothing.

    A deep copy of a watched model, an EMA of it or a saved one must carry no live hook: its passes
    would count in ours, and the hook's owner would travel along.

    Attributes:
        order: ``(rank, sequence)``: where among our callables on a module this one runs.
    """

    order: tuple[int, int]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_make_no_op, ())


def attach(
    module: nn.Module,
    callback: InertWhenCopied,
    hook_type: HookType,
    *,
    always_call: bool = False,
) -> RemovableHandle:
    """Attach ``callback`` to ``module``, in its place among our callables there.

    Args:
        module: the module to attach to.
        callback: called as ``(module, args, kwargs)`` before, or ``(module, args, kwargs, output)`` after.
        hook_type: before or after the module's forward.
        always_call: also call it when the forward raised (after the forward only).

    Returns:
        torch's handle; its ``remove()`` may be called more than once.
    """
    if not callable(callback):
        raise TypeError(f"{type(callback).__name__} is not callable")
    handle: RemovableHandle
    if hook_type is HookType.PRE_FORWARD:
        handle = module.register_forward_pre_hook(callback, with_kwargs=True)
        _move_later_ones_behind(module._forward_pre_hooks, callback)
    else:
        handle = module.register_forward_hook(callback, with_kwargs=True, always_call=always_call)
        _move_later_ones_behind(module._forward_hooks, callback)
    return handle


def _move_later_ones_behind(hooks: dict[int, Any], callback: InertWhenCopied) -> None:
    later = [
        (other.order, handle_id)
        for handle_id, other in hooks.items()
        if isinstance(other, InertWhenCopied) and other.order > callback.order
    ]
    for _, handle_id in sorted(later):
        hooks[handle_id] = hooks.pop(handle_id)  # to the end
