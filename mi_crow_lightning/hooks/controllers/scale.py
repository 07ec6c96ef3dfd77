"""Scaling: multiplying activations by a factor; 0 switches a part of the model off, -1 reverses it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mi_crow_lightning._arguments import is_finite
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.edits import mixed
from mi_crow_lightning.hooks.options import TokenOptions, Unpack
from mi_crow_lightning.hooks.token_controller import TokenController

__all__ = ["ScaleController"]


class ScaleController(TokenController):
    """A controller that multiplies activations by a factor at chosen tokens.

    Args:
        layer_signature: which layers, for example ``"block:3.attn"`` to scale what attention adds to the stream.
        factor: what to multiply by.
        **options: ``strength``, the share of the change (1 is all), ``tokens``, ``when``, see `TokenController`;
            ``hook_type``, ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        ValueError: ``factor`` is not a finite number.

    Examples:
        >>> from torch import nn, ones
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", ScaleController("0", 0.5))
        >>> model(ones(1, 1, 2))
        tensor([[[0.5000, 0.5000]]])
    """

    traceable = True

    def __init__(self, layer_signature: Signature | None, factor: float, **options: Unpack[TokenOptions]) -> None:
        super().__init__(layer_signature, **options)
        if not is_finite(factor):
            raise ValueError(f"factor={shown(factor)} must be a finite number")
        self.factor = float(factor)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "factor", f"{self.factor:.4g}"
        yield from super()._facts()

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``x`` with the share ``strength`` of the way to ``x * factor``."""
        return mixed(x, x * self.factor, strength)
