"""The arithmetic of edits: pure functions of an activation, a change or a new value, and a strength.

A strength is a number, or a float32 tensor ``(rows, 1, ...)``. Both give the same bits: products are rounded once,
to the activation's dtype, and the activation itself is never cast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mi_crow_lightning.errors import EditMismatch

__all__ = ["added", "laid_out_like", "mixed", "rounded", "with_norms_of"]


def added(x: Tensor, change: Tensor, strength: float | Tensor) -> Tensor:
    """Return ``x + strength * change``.

    Args:
        x: the activation.
        change: the change, of a shape that broadcasts to that of ``x``, in the dtype of ``x`` or in float32.
        strength: the factor of the change.

    Raises:
        EditMismatch: ``x`` holds integers, and the product does not.

    Examples:
        >>> added(torch.zeros(2), torch.tensor([1.0, 2.0]), 3.0)
        tensor([3., 6.])
    """
    product = strength * change
    return x + (product if product.dtype is x.dtype else rounded(product, x.dtype))


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in the dtype of an activation: rounded to a floating-point one, unchanged in one of integers.

    Raises:
        EditMismatch: integers cannot hold the values.

    Examples:
        >>> rounded(torch.tensor([2.0, -1.0]), torch.int64)
        tensor([ 2, -1])
    """
    if values.dtype is dtype:
        return values
    cast = values.to(dtype)
    if not dtype.is_floating_point and not dtype.is_complex:
        _refuse_loss(values, cast)
    return cast


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


def laid_out_like(x: Tensor, edited: Tensor) -> Tensor:
    """Return ``edited`` with its elements in memory as those of ``x``, which the layers that follow may rely on."""
    return edited if edited.stride() == x.stride() else torch.empty_like(x).copy_(edited)


def with_norms_of(x: Tensor, edited: Tensor, channels: int = -1) -> Tensor:
    """Scale each token of ``edited`` to the Euclidean norm that it has in ``x``; zeros stay zeros.

    Args:
        x: the activation.
        edited: the edited one.
        channels: the dimension of the channels, which norms are taken over.

    Raises:
        EditMismatch: ``x`` holds integers.

    Examples:
        >>> with_norms_of(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([[5., 0.]])
    """
    if not x.is_floating_point():
        raise EditMismatch(f"preserve_norm=True needs floating-point activations, and these are {x.dtype}")
    was, now = (torch.linalg.vector_norm(t, dim=channels, keepdim=True, dtype=_wide(t)) for t in (x, edited))
    return rounded(edited * (was / torch.where(now > 0, now, 1.0)), x.dtype)


def _refuse_loss(values: Tensor, cast: Tensor) -> None:
    """Refuse values that integers cut off; in a graph, where nobody can look at them, all that are not integers."""
    if values.dtype == cast.dtype:
        return
    what = "bools" if cast.dtype == torch.bool else "integers"
    if torch.compiler.is_compiling():
        raise EditMismatch(f"the activation holds {what} ({cast.dtype}), which cannot be edited in a compiled graph")
    lost = values[torch.ones_like(cast, dtype=torch.bool) if what == "bools" else cast != values]
    if lost.numel():
        raise EditMismatch(
            f"the activation holds {what} ({cast.dtype}), which cannot take {lost[0].item():g}: it would be cut off. "
            "Edit a layer with floating-point activations, or make vector, bounds and strength whole numbers."
        )


def _wide(x: Tensor) -> torch.dtype:
    """Return float32, or the dtype of ``x`` if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)
