"""Conversion of the result of a hook's ``_hook_fn`` to what torch expects."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mi_crow_lightning.hooks.activations import put_input
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import checked_edit
from mi_crow_lightning.hooks.hook_type import HookType

__all__ = ["replacement"]


def replacement(result: Any, hook_type: HookType, ctx: HookContext) -> Any:
    """Return what replaces a layer's output, or, before a layer, its ``(args, kwargs)``; ``None`` for nothing.

    Args:
        result: what the hook returned; before a layer this is a tensor, a tuple, or ``(args, kwargs)``.
        hook_type: whether the hook runs before or after the layer.
        ctx: the context of the call.

    Raises:
        TypeError: ``result`` cannot replace inputs.
        EditMismatch: ``result`` cannot replace a head.
    """
    if result is None or hook_type is HookType.FORWARD:
        return result if result is None or ctx.place.head is None else checked_edit(result, ctx.output)
    if isinstance(result, Tensor):
        return put_input(ctx.args, ctx.kwargs, result)
    if isinstance(result, list):
        result = tuple(result)
    if not isinstance(result, tuple):
        raise TypeError(
            f"_hook_fn of a pre_forward hook returned a {type(result).__name__}: return a tensor, "
            "a tuple of positional inputs, or (args, kwargs)"
        )
    if len(result) == 2 and isinstance(result[0], tuple) and isinstance(result[1], dict):
        return result
    return result, dict(ctx.kwargs)
