"""Ablation: taking a direction, or a subspace, out of activations.

Projects onto the orthogonal complement (directional ablation, Arditi et al. 2024, arXiv:2406.11717). Later layers
may write the direction again: ablate at every layer that does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.directions import orthonormal_basis
from mi_crow_lightning.hooks.edits import added
from mi_crow_lightning.hooks.vector_controller import VectorController
from mi_crow_lightning.metrics.projections import onto, project

__all__ = ["AblationController"]


class AblationController(VectorController):
    """A controller that takes out of activations what lies along a direction, or in a subspace.

    With an orthonormal basis ``U`` ``(R, D)`` of the subspace, ``x - strength * (x @ U.T) @ U``.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, a direction, or ``(K, D)``, directions that span a subspace; or a mapping from layer
            (block index or name) to these, or the path of a `SteeringVector`'s file. Lengths do not matter. Rows that
            depend on others add nothing to the subspace.
        **options: ``strength``, the share that is taken out (1 is all), ``tokens``, ``when``, ``preserve_norm``, see
            `TokenController`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``vector`` is not such a tensor, is not finite, or has a row of length 0.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", AblationController("0", tensor([0.0, 2.0])))
        >>> model(tensor([[[3.0, 4.0]]]))
        tensor([[[3., 0.]]])
    """

    traceable = True
    described = "the ablated direction"

    def checked(self, value: Any, name: str) -> Tensor:
        """Return an orthonormal basis of the directions, ``(R, D)`` float64."""
        return orthonormal_basis(value, name)

    @property
    def basis(self) -> Tensor | dict[int | str, Tensor]:
        """An orthonormal basis of what is taken out, ``(R, D)`` float64, or a dict of these by layer."""
        return self.vector

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``x`` without the share ``strength`` of what lies in the subspace.

        Raises:
            VectorMismatch: the width of the subspace is not that of ``x``.
        """
        units = self.vector_at(x, ctx)  # (R, D)
        return added(x, -onto(project(x, units), units), strength)
