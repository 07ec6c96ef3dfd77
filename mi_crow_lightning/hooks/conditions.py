"""Conditions: where an edit happens, decided while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning._arguments import is_finite, one_of
from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import ConditionMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.positions.rows import of_rows

__all__ = ["Beyond", "Condition", "Of", "where_both"]

# Any, because in a configuration file jsonargparse would take only functions that are annotated to return a Tensor.
Condition: TypeAlias = Callable[[Tensor, HookContext], Any]
"""What ``when=`` is: from an activation and the context to ``True`` where it is to be edited.

It returns a bool tensor, ``(B,)`` for samples or ``(B, T)`` for tokens, or one bool for all.
"""

Of: TypeAlias = Literal["projection", "cosine"]
"""What `Beyond` compares with its bound."""


class _Projections(Protocol):
    def running(
        self, ctx: HookContext, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Tensor: ...


class Beyond:
    """The condition that a token lies far enough along a direction, as a detector saw it in the running pass.

    Args:
        detector: knows the projections of the running pass, see `ProjectionDetector.above`.
        is_above: whether the condition holds above the bound, or below it. It never holds at the bound.
        bound: the bound.
        of: what is compared: ``"projection"`` or ``"cosine"``.
        vector: name of the direction, where there are several.
        layer: the layer to look at; ``None`` for the edited one, or for the only one that the detector watches.

    Raises:
        ValueError: ``bound`` is not a finite number, or ``of`` is neither.
    """

    def __init__(
        self,
        detector: _Projections,
        is_above: bool,
        bound: float,
        of: Of = "projection",
        vector: str | None = None,
        layer: str | int | None = None,
    ) -> None:
        if not is_finite(bound):
            raise ValueError(f"bound={shown(bound)} must be a finite number")
        one_of("of", of, ["projection", "cosine"])
        self.detector = detector
        self.is_above = is_above
        self.bound = float(bound)
        self.of: Of = of
        self.vector = vector
        self.layer = layer

    def __call__(self, x: Tensor, ctx: HookContext) -> Tensor:
        """Return which tokens of the running pass lie beyond the bound: ``(B, T)`` bool.

        Raises:
            ConditionMismatch: their projections are not known.
        """
        values = self.detector.running(ctx, of=self.of, vector=self.vector, layer=self.layer)
        return values > self.bound if self.is_above else values < self.bound

    def __repr__(self) -> str:
        return f"{self.detector!r}.{'above' if self.is_above else 'below'}({self.bound!r}, of={self.of!r})"


def where_both(mask: Tensor | None, condition: Condition | None, x: Tensor, ctx: HookContext) -> Tensor | bool:
    """Return where a token is chosen and the condition holds.

    Args:
        mask: the chosen tokens, ``(B, T)`` bool, or ``None`` for all.
        condition: the condition, or ``None`` if there is none.
        x: the activation.
        ctx: the hook's context.

    Returns:
        A bool mask whose dimensions are leading ones of ``x``; or ``True`` for every position, ``False`` for none.

    Raises:
        ConditionMismatch: the condition returned something other than a mask that fits.
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
    """Return what a condition returned: a bool, or a mask of dimensions (), (rows,) or (rows, T)."""
    if isinstance(holds, bool):
        return holds
    if not isinstance(holds, Tensor) or holds.dtype != torch.bool:
        what = f"{holds.dtype} tensor" if isinstance(holds, Tensor) else type(holds).__name__
        raise ConditionMismatch(
            f"when returned a {what} for {ctx.layer!r}: it must return a bool, or a bool tensor (B,) or (B, T)"
        )
    if holds.dim() == 0:
        return holds.to(x.device)
    if holds.dim() == 2 and _has_channels_there(x, ctx):
        raise ConditionMismatch(
            f"when returned a mask of shape {tuple(holds.shape)} for {ctx.layer!r}, whose activation {tuple(x.shape)} "
            "has its channels in dimension 1, and so no tokens there: it must return a bool, or a bool tensor (B,)"
        )
    if holds.dim() == 2 and holds.shape == x.shape[:2]:
        return holds.to(x.device)
    rows = of_rows(holds, x, ctx, by_row=True) if holds.dim() <= x.dim() - 1 else None
    if rows is None or rows.dim() > 2 or rows.shape != x.shape[: rows.dim()]:
        raise ConditionMismatch(
            f"when returned a mask of shape {tuple(holds.shape)} for {ctx.layer!r}, whose activation has shape "
            f"{tuple(x.shape)}: it must return a bool, or a bool tensor (B,) or (B, T) = {tuple(x.shape[:2])}, "
            "with one value for each row or token"
        )
    return rows.to(x.device)


def _has_channels_there(x: Tensor, ctx: HookContext) -> bool:
    """Return whether dimension 1 of an activation is known to hold channels rather than tokens."""
    channels, dim = ctx.place.channels, 1 - x.dim()
    if x.dim() == 3:
        return channels.of(x, (ctx.facts.rows, ctx.facts.tokens)) == dim
    return x.dim() > 3 and channels.by_dims[x.dim()] == dim
