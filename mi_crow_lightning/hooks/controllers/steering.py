"""Steering: adding a vector to the residual stream.

Adds ``strength * vector`` to the output of a layer at chosen tokens (activation addition, Turner et al.
2023, arXiv:2308.10248). It works less well at the first and last blocks, and at strengths whose change is
as long as the activation itself: text then begins to repeat.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mi_crow_lightning._saved_state import Check
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.options import SteeringOptions, Unpack
from mi_crow_lightning.hooks.per_layer import PerLayer, Vector
from mi_crow_lightning.hooks.strengths import Strength
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.hooks.vector_controller import VectorController

__all__ = ["SteeringController"]


class SteeringController(VectorController):
    """A controller that adds ``strength * vector`` to activations at chosen tokens.

    The product is made in float32 and cast to the activation's dtype; the activation is never cast. All other
    positions stay bit-equal.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, the direction, with its length; or a mapping from layer (block index or name) to such
            vectors, as a `SteeringVector` is, or the path of one's file. Like the strength it may be set between
            batches.
        strength: how much of it, negative to steer away; its forms are those of `TokenController`.
        tokens: ``"all"``, ``"prompt"``, ``"generated"``, ``"last"``, or `Tokens`.
        **options: ``when``, ``preserve_norm``, see `TokenController`; ``hook_type``, ``hook_id``, ``schedule``,
            ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``vector`` is not a finite vector, or ``strength`` has none of its forms.

    Examples:
        >>> from torch import nn, tensor, zeros
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", SteeringController("0", tensor([1.0, 2.0]), strength=2.0))
        >>> model(zeros(1, 1, 2))
        tensor([[[2., 4.]]])
    """

    traceable = True
    described = "the steering vector"

    def __init__(
        self,
        layer_signature: Signature | None,
        vector: Vector,
        strength: Strength = 1.0,
        tokens: TokensLike = "all",
        **options: Unpack[SteeringOptions],
    ) -> None:
        super().__init__(layer_signature, vector, strength=strength, tokens=tokens, **options)

    @property
    def vector(self) -> Tensor | dict[int | str, Tensor]:
        """The direction, ``(D,)`` float32, or a dict of these by layer: copies of what was given."""
        return super().vector

    @vector.setter
    def vector(self, value: Vector) -> None:
        self._keep(value)

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``x + strength * vector``.

        Raises:
            VectorMismatch: the vector's width is not that of ``x``.
        """
        return x + self.scaled_vector_at(x, strength, ctx)

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, the strength and the vector."""
        of = self.vector
        vector = of.cpu() if isinstance(of, Tensor) else {layer: one.cpu() for layer, one in of.items()}
        return super().state_dict() | {"vector": vector}

    _may_be_missing = (*VectorController._may_be_missing, "vector")

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"vector": self._saved_vector}

    def _saved_vector(self, name: str, value: Any) -> PerLayer[Tensor]:
        if not isinstance(value, (Tensor, dict)):  # a string would be opened as a path
            raise TypeError(f"{name}={shown(value)} must be a tensor, or a dict of tensors by layer")
        return PerLayer(value, name, self.checked)

    def _load(self, fields: dict[str, Any]) -> None:
        """Restore the switch, the strength and the vector."""
        super()._load(fields)
        if "vector" in fields:
            self._take(fields["vector"])
