"""The arithmetic of edits: pure functions of an activation, a change or a new value, and a strength.

A strength is a number, or a float32 tensor ``(rows, 1, ...)``. Both give the same bits: products are rounded once,
to the activation's dtype, and the activation itself is never cast.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["added", "mixed", "with_norms_of"]


def added(x: Tensor, change: Tensor, strength: float | Tensor) -> Tensor:
    """Return ``x + strength * change``.

    Args:
        x: the activation.
        change: the change, of a shape that broadcasts to that of ``x``, in the dtype of ``x`` or in float32.
        strength: the factor of the change.

    Examples:
        >>> added(torch.zeros(2), torch.tensor([1.0, 2.0]), 3.0)
        tensor([3., 6.])
    """
    return x + (strength * change).to(x.dtype)


def mixed(x: Tensor, new: Tensor, strength: float | Tensor) -> Tensor:
    """Return ``x + strength * (new - x)``, and exactly ``new`` where the strength is 1.

    Examples:
        >>> mixed(torch.zeros(2), torch.tensor([1.0, 2.0]), 0.5)
        tensor([0.5000, 1.0000])
    """
    if new is x or (isinstance(strength, float) and strength == 1):
        return new
    between = added(x, new - x, strength)
    return torch.where(strength == 1, new, between) if isinstance(strength, Tensor) else between


def with_norms_of(x: Tensor, edited: Tensor) -> Tensor:
    """Scale each token of ``edited`` to the Euclidean norm that it has in ``x``; zeros stay zeros.

    Examples:
        >>> with_norms_of(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([[5., 0.]])
    """
    was, now = (torch.linalg.vector_norm(t, dim=-1, keepdim=True, dtype=_wide(t)) for t in (x, edited))
    scaled: Tensor = edited * (was / torch.where(now > 0, now, 1.0))
    return scaled.to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """Return float32, or the dtype of ``x`` if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)
