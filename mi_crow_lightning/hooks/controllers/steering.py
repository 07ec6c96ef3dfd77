"""Steering: adding a vector to the residual stream.

Adds ``strength * vector`` to the output of a layer at chosen tokens (activation addition, Turner et al.
2023, arXiv:2308.10248). Works less well at the first and last blocks, and at strengths whose change is
as long as the activation itself: text then begins to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.directions import check_width, checked_vector
from mi_crow_lightning.hooks.edits import added
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, Vector
from mi_crow_lightning.hooks.strengths import Strength
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.hooks.tokens import Tokens

__all__ = ["SteeringController"]


class SteeringController(TokenController):
    """Adds ``strength * vector`` to activations at chosen tokens.

    The product is made in float32 and cast to the activation's dtype; the activation is never cast. All other
    positions stay bit-equal.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, the direction, with its length; or a mapping from layer (block index or name) to such
            vectors, as a `SteeringVector` is, or the path of one's file. Like the strength it may be changed between
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

    def __init__(
        self,
        layer_signature: str | int | None,
        vector: Vector,
        strength: Strength = 1.0,
        tokens: Tokens | str = "all",
        **options: Any,
    ) -> None:
        super().__init__(layer_signature, strength=strength, tokens=tokens, **options)
        self._casts = Casts()
        self.vector = vector

    @property
    def vector(self) -> Tensor | dict[int | str, Tensor]:
        """The direction, ``(D,)`` float32, or a dict of these by layer: copies of what was given."""
        return self._vectors.value

    @vector.setter
    def vector(self, value: Vector) -> None:
        self._vectors = PerLayer(value, "vector", checked_vector)
        self._casts.clear()

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """``x + strength * vector``.

        Raises:
            VectorMismatch: the vector's width is not that of ``x``.
        """
        vector = self._vectors.at(ctx)
        check_width(len(vector), x, ctx, "the steering vector")
        wide = torch.promote_types(x.dtype, torch.float32)
        return added(x, self._casts.of(vector, x, wide), strength)

    def prepare_graph(self, device: torch.device) -> None:
        """Have the directions where the graph runs."""
        self._vectors.move(device)

    @property
    def vector_models(self) -> tuple[str, ...]:
        """The model of the vector, if it is a `SteeringVector`."""
        return (self._vectors.model,)

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that there is no vector for.

        Raises:
            RegistrationError: it names the layer, and those that there are.
        """
        super().check_layers(blocks)
        self._vectors.check_layers(blocks)

    def state_dict(self) -> dict[str, Any]:
        """The switch, the strength and the vector."""
        of = self.vector
        vector = of.cpu() if isinstance(of, Tensor) else {layer: one.cpu() for layer, one in of.items()}
        return super().state_dict() | {"vector": vector}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        super().load_state_dict(state)
        self.vector = state.get("vector", self.vector)
