"""A condition for edits: that tokens lie far enough along a direction, as a detector saw it in the running pass."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from mi_crow_lightning._arguments import is_finite, not_known
from mi_crow_lightning.hooks.context import HookContext

__all__ = ["Beyond", "Of"]

Of: TypeAlias = Literal["projection", "cosine"]


class _Projections(Protocol):
    def running(
        self, ctx: HookContext, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Tensor: ...


class Beyond:
    """The condition that a token's projection, or cosine, is above or below a bound.

    Args:
        detector: knows the running pass's projections, see `ProjectionDetector.above`.
        is_above: above the bound, or below.
        bound: the bound itself is not beyond it.
        of: ``"projection"`` or ``"cosine"``.
        vector: name of the direction, where there are several.
        layer: the layer that is looked at; ``None`` for the one that goes without saying.

    Raises:
        ValueError: ``bound`` is no finite number, or ``of`` none of the two.
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
            raise ValueError(f"bound={bound!r} must be a finite number")
        if of not in ("projection", "cosine"):
            raise not_known("of", of, ["projection", "cosine"])
        self.detector = detector
        self.is_above = is_above
        self.bound = float(bound)
        self.of: Of = of
        self.vector = vector
        self.layer = layer

    def __call__(self, x: Tensor, ctx: HookContext) -> Tensor:
        """Which tokens of the running pass are beyond the bound: ``(B, T)`` bool.

        Raises:
            ConditionMismatch: their projections are not known.
        """
        values = self.detector.running(ctx, of=self.of, vector=self.vector, layer=self.layer)
        return values > self.bound if self.is_above else values < self.bound

    def __repr__(self) -> str:
        return f"{self.detector!r}.{'above' if self.is_above else 'below'}({self.bound!r}, of={self.of!r})"
