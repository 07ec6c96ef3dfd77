"""Ablation: taking a direction, or a subspace, out of activations.

Projects onto the orthogonal complement (directional ablation, Arditi et al. 2024, arXiv:2406.11717). Later layers
may write the direction again: ablate at every layer that does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.directions import check_width, orthonormal_basis
from mi_crow_lightning.hooks.edits import added
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, Vector
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.metrics.projections import onto, project

__all__ = ["AblationController"]


class AblationController(TokenController):
    """Takes out of activations what lies along a direction, or in a subspace.

    With an orthonormal basis ``U`` ``(R, D)`` of the subspace, ``x - strength * (x @ U.T) @ U``.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, a direction, or ``(K, D)``, directions that span a subspace; or a mapping from layer
            (block index or name) to these, or the path of a `SteeringVector`'s file. Lengths do not matter. Rows that
            depend on others add nothing to the subspace, so they change nothing.
        **options: ``strength``, the share that is taken out (1 is all), ``tokens``, ``when``, ``preserve_norm``, see
            `TokenController`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``vector`` is no such tensor, is not finite, or has a row of length 0.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", AblationController("0", tensor([0.0, 2.0])))
        >>> model(tensor([[[3.0, 4.0]]]))
        tensor([[[3., 0.]]])
    """

    traceable = True

    def __init__(
        self,
        layer_signature: str | int | None,
        vector: Vector,
        **options: Any,
    ) -> None:
        super().__init__(layer_signature, **options)
        self._bases = PerLayer(vector, "vector", orthonormal_basis)
        self._casts = Casts()

    @property
    def basis(self) -> Tensor | dict[int | str, Tensor]:
        """An orthonormal basis of what is taken out, ``(R, D)`` float64, or a dict of these by layer."""
        return self._bases.value

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """``x`` without the share ``strength`` of what lies in the subspace.

        Raises:
            VectorMismatch: the subspace is not one of the activation's space.
        """
        basis = self._bases.at(ctx)
        check_width(basis.shape[-1], x, ctx, "the ablated direction")
        units = self._casts.of(basis, x)
        return added(x, -onto(project(x, units), units), strength)

    def prepare_graph(self, device: torch.device) -> None:
        """Have the directions where the graph runs."""
        self._bases.move(device)

    @property
    def vector_models(self) -> tuple[str, ...]:
        """The model of the vector, if it is a `SteeringVector`."""
        return (self._bases.model,)

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that there is no direction for.

        Raises:
            RegistrationError: it names the layer, and those that there are.
        """
        super().check_layers(blocks)
        self._bases.check_layers(blocks)
