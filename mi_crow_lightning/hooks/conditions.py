"""Conditions: where an edit happens, decided while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning.errors import ConditionMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.positions.rows import of_rows

__all__ = ["Condition", "where_both"]

# Any, because in a configuration file jsonargparse would take only functions that are annotated to return a Tensor.
Condition: TypeAlias = Callable[[Tensor, HookContext], Any]
"""What ``when=`` is: from an activation and the context to ``True`` where it is to be edited.

It returns a bool tensor, ``(B,)`` for samples or ``(B, T)`` for tokens, or one bool for all.
"""


def where_both(mask: Tensor | None, condition: Condition | None, x: Tensor, ctx: HookContext) -> Tensor | bool:
    """The chosen tokens at which the condition holds.

    Args:
        mask: the tokens, ``(B, T)`` bool, or ``None`` for all.
        condition: the condition, or ``None`` for none.
        x: the activation.
        ctx: the hook's context.

    Returns:
        A bool mask of leading dimensions of ``x``; ``True`` for every position, ``False`` for none.

    Raises:
        ConditionMismatch: the condition gave something else than a mask that fits.
    """
    holds: Tensor | bool = True
    if condition is not None:
        with torch.no_grad():
            holds = _fitted(condition(x, ctx), x, ctx)
    if mask is None or holds is False:
        return holds
    if holds is True:
        return mask
    assert isinstance(holds, Tensor)
    wide = holds if holds.dim() == 0 else holds.reshape(*holds.shape, *[1] * (mask.dim() - holds.dim()))
    return mask & wide


def _fitted(holds: Any, x: Tensor, ctx: HookContext) -> Tensor | bool:
    """What a condition gave: a bool, or a mask of dimensions (), (rows,) or (rows, T)."""
    if isinstance(holds, bool):
        return holds
    if not isinstance(holds, Tensor) or holds.dtype != torch.bool:
        what = f"{holds.dtype} tensor" if isinstance(holds, Tensor) else type(holds).__name__
        raise ConditionMismatch(
            f"when returned a {what} for {ctx.layer!r}: it must return a bool, or a bool tensor (B,) or (B, T)"
        )
    if holds.dim() == 0:
        return holds.to(x.device)
    if holds.dim() == 2 and holds.shape == x.shape[:2]:
        return holds.to(x.device)
    rows = of_rows(holds, x, ctx) if holds.dim() <= x.dim() - 1 else None
    if rows is None or rows.dim() > 2 or rows.shape != x.shape[: rows.dim()]:
        raise ConditionMismatch(
            f"when returned a mask of shape {tuple(holds.shape)} for {ctx.layer!r}, whose activation has shape "
            f"{tuple(x.shape)}: it must return a bool, or a bool tensor (B,) or (B, T) = {tuple(x.shape[:2])}"
        )
    return rows.to(x.device)
