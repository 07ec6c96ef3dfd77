"""Steering: adding a vector to the residual stream.

Adds ``strength * vector`` to the output of a layer at chosen tokens (activation addition, Turner et al.
2023, arXiv:2308.10248). Works less well at the first and last blocks, and at strengths whose change is
as long as the activation itself: text then begins to repeat.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.errors import VectorMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.tokens import Tokens, put_where

__all__ = ["SteeringController"]


class SteeringController(Controller):
    """Adds ``strength * vector`` to activations at chosen tokens.

    The vector is cast to the activation's dtype and device, once; the activation is never cast. All other
    positions stay bit-equal.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, the direction, with its length. Like the strength it may be changed between batches.
        strength: how much of it; negative to steer away.
        tokens: ``"all"``, ``"prompt"``, ``"generated"`` or ``"last"``, see `Tokens`.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        **options: ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``vector`` is not a finite vector, or ``strength`` not a finite number.

    >>> from torch import nn, tensor, zeros
    >>> from mi_crow_lightning.hooks import Layers
    >>> model = nn.Sequential(nn.Identity(), nn.Identity())
    >>> _ = Layers(model).register_hook("0", SteeringController("0", tensor([1.0, 2.0]), strength=2.0))
    >>> model(zeros(1, 1, 2))
    tensor([[[2., 4.]]])
    """

    def __init__(
        self,
        layer_signature: str | int | None,
        vector: Tensor,
        strength: float = 1.0,
        tokens: Tokens | str = "all",
        *,
        hook_type: HookType | str = HookType.FORWARD,
        hook_id: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        self._delta: Tensor | None = None
        self._delta_strength = math.nan
        self.vector = vector
        self.strength = strength
        self.tokens = Tokens.of(tokens)

    @property
    def vector(self) -> Tensor:
        """The direction, ``(D,)`` float32: a copy of what was given."""
        return self._vector

    @vector.setter
    def vector(self, value: Tensor) -> None:
        self._vector, self._delta = _checked_vector(value), None

    @property
    def strength(self) -> float:
        """How much of the vector is added."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"strength={value!r} must be a finite number")
        self._strength = float(value)

    def edit(self, x: Tensor, ctx: HookContext) -> Tensor:
        """``x + strength * vector`` at the chosen positions, ``x`` elsewhere.

        Raises:
            VectorMismatch: the vector's width is not that of ``x``.
        """
        if x.shape[-1] != len(self.vector):
            raise VectorMismatch(
                f"the steering vector has {len(self.vector)} features, and the activation of {ctx.layer!r} has "
                f"{x.shape[-1]} (shape {tuple(x.shape)}): use a vector extracted from this model and layer"
            )
        return put_where(self.tokens.mask(x, ctx, editing=True), x + self._change(x), x)

    def _change(self, x: Tensor) -> Tensor:
        """``strength * vector`` in the dtype and on the device of ``x``."""
        delta = self._delta
        if delta is None or (self._delta_strength, delta.dtype, delta.device) != (
            self.strength,
            x.dtype,
            x.device,
        ):
            with torch.inference_mode(False):  # the same one serves prediction and training
                delta = (self.strength * self.vector).to(x.device, x.dtype)
            self._delta, self._delta_strength = delta, self.strength
        return delta

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_delta": None}


def _checked_vector(vector: Any) -> Tensor:
    if not isinstance(vector, Tensor):
        raise TypeError(f"vector must be a tensor (D,), not a {type(vector).__name__}: use torch.as_tensor(...)")
    if vector.dim() != 1 or not vector.numel() or not vector.is_floating_point():
        raise ValueError(f"vector must be a float tensor (D,), not {vector.dtype} of shape {tuple(vector.shape)}")
    with torch.inference_mode(False):
        copy = vector.detach().to(torch.float32, copy=True)
    if not torch.isfinite(copy).all():
        raise ValueError(f"vector holds {int((~torch.isfinite(copy)).sum())} values that are not finite")
    return copy
