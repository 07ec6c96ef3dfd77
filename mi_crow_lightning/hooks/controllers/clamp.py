"""Clamping: setting how far activations lie along a direction.

Whatever the activation, its component along the direction becomes a value, or stays within a range; all that is
orthogonal to the direction stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import is_finite
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.directions import unit_vector
from mi_crow_lightning.hooks.edits import added
from mi_crow_lightning.hooks.options import TokenOptions, Unpack
from mi_crow_lightning.hooks.per_layer import Vector
from mi_crow_lightning.hooks.vector_controller import VectorController
from mi_crow_lightning.metrics.projections import project

__all__ = ["ClampController"]


class ClampController(VectorController):
    """A controller that sets the projection of activations on a direction to a value, or clips it to a range.

    With the unit vector ``u`` and the projection ``p = x @ u``, ``x + strength * (target - p) * u``. Tokens whose
    projection is within the range stay bit-equal.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, the direction; its length does not matter; or a mapping from layer (block index or name)
            to directions, or the path of a `SteeringVector`'s file.
        value: what the projection becomes, in units of the activation.
        low: the least that the projection may be, instead of ``value``.
        high: the most that it may be, instead of ``value``.
        **options: ``strength``, the share of the way (1 is all), ``tokens``, ``when``, ``preserve_norm`` (it then
            scales the projection, too), see `TokenController`; ``hook_type``, ``hook_id``, ``schedule``,
            ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``vector`` is not a finite direction; neither ``value`` nor a bound is given, or both; a
            number is not finite; the range is empty.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", ClampController("0", tensor([0.0, 2.0]), high=1.0))
        >>> model(tensor([[[3.0, 4.0], [3.0, -4.0]]]))
        tensor([[[ 3.,  1.],
                 [ 3., -4.]]])
    """

    traceable = True
    described = "the clamped direction"

    def __init__(
        self,
        layer_signature: Signature | None,
        vector: Vector,
        value: float | None = None,
        *,
        low: float | None = None,
        high: float | None = None,
        **options: Unpack[TokenOptions],
    ) -> None:
        super().__init__(layer_signature, vector, **options)
        self.value, self.low, self.high = (
            None if number is None else float(number) for number in _checked(value, low, high)
        )

    def checked(self, value: Any, name: str) -> Tensor:
        """Return the unit vector in the direction, ``(D,)`` float64."""
        return unit_vector(value, name)

    @property
    def _may_be_idle(self) -> bool:
        """Whether it may change nothing in a whole stage, as when all tokens lie within the range."""
        return self.value is None or super()._may_be_idle

    def _facts(self) -> Iterator[tuple[str, str]]:
        given = {"value": self.value, "low": self.low, "high": self.high}
        yield from ((name, f"{number:.4g}") for name, number in given.items() if number is not None)
        yield from super()._facts()

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``x`` with its projection at the value, or within the range.

        Raises:
            VectorMismatch: the direction's width is not that of ``x``.
        """
        unit = self.vector_at(x, ctx)
        along = project(x, unit[None])  # (..., 1)
        if self.value is not None:
            return added(x, (self.value - along) * unit, strength)
        target = along.clamp(self.low, self.high)
        return torch.where(target == along, x, added(x, (target - along) * unit, strength))


def _checked(
    value: float | None, low: float | None, high: float | None
) -> tuple[float | None, float | None, float | None]:
    given = {name: number for name, number in (("value", value), ("low", low), ("high", high)) if number is not None}
    for name, number in given.items():
        if not is_finite(number):
            raise ValueError(f"{name}={shown(number)} must be a finite number")
    if not given or ("value" in given and len(given) > 1):
        raise ValueError(
            f"value={shown(value)}, low={shown(low)}, high={shown(high)}: give a value, or low, high or both"
        )
    if low is not None and high is not None and low > high:
        raise ValueError(f"low={shown(low)} is above high={shown(high)}: the range is empty")
    return value, low, high
