"""Directions in activation space: checked and copied, made unit vectors, made an orthonormal basis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import unusable
from mi_crow_lightning.errors import VectorMismatch
from mi_crow_lightning.hooks.context import HookContext

__all__ = ["channel_dim_for", "channels_not_shown", "check_width", "checked_vector", "orthonormal_basis", "unit_vector"]


def checked_vector(value: Any, name: str = "vector") -> Tensor:
    """Return a copy of a vector ``(D,)``, float32.

    Raises:
        TypeError, ValueError: it is not a finite float tensor ``(D,)``.
    """
    return _copied(value, name, "(D,)", (1,), torch.float32, None)


def unit_vector(value: Any, name: str = "vector") -> Tensor:
    """Return the unit vector in the direction of ``value``: ``(D,)`` float64.

    Raises:
        TypeError, ValueError: it is not a finite float tensor ``(D,)``, or has length 0.

    Examples:
        >>> unit_vector(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000], dtype=torch.float64)
    """
    vector = _copied(value, name, "(D,)", (1,))
    return _scaled_to_one(vector[None], name)[0]


def orthonormal_basis(value: Any, name: str = "vector") -> Tensor:
    """Return an orthonormal basis of the space that the rows of ``value`` span: ``(R, D)`` float64.

    A row that depends on the others adds nothing to the space, so ``R`` may be less than the number of rows. Rows
    count as dependent within float32 rounding, whatever their lengths.

    Args:
        value: ``(D,)``, or ``(K, D)`` for a subspace.
        name: what messages call it.

    Raises:
        TypeError, ValueError: it is not such a tensor, or a row has length 0.

    Examples:
        >>> orthonormal_basis(torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])).abs()
        tensor([[1., 0., 0.]], dtype=torch.float64)
    """
    rows = _copied(value, name, "(D,), or (K, D) for a subspace", (1, 2))
    rows = _scaled_to_one(rows.reshape(-1, rows.shape[-1]), name)
    with torch.inference_mode(False), torch.no_grad():
        _, lengths, basis = torch.linalg.svd(rows, full_matrices=False)
        small = max(rows.shape) * torch.finfo(torch.float32).eps
        independent: Tensor = basis[lengths > small * lengths[0]]
        return independent.clone()


def check_width(width: int, x: Tensor, ctx: HookContext, name: str, channels: int = -1) -> None:
    """Refuse a vector that is not as wide as the activation.

    Args:
        width: of the vector.
        x: the activation.
        ctx: the hook's context.
        name: what messages call the vector.
        channels: the dimension of the activation's channels.

    Raises:
        VectorMismatch: it names the layer, and both widths.
    """
    if x.shape[channels] != width:
        where = "" if channels == -1 else f"channels, dimension {channels % x.dim()} of its "
        raise VectorMismatch(
            f"{name} has {width} features, and the activation of {ctx.layer!r} has "
            f"{x.shape[channels]} ({where}shape {tuple(x.shape)}): use a vector extracted from this model and layer"
        )


def channel_dim_for(width: int, x: Tensor, ctx: HookContext, name: str) -> int:
    """Return the dimension of the channels that a vector of ``width`` features lies along, counted from the end.

    Raises:
        VectorMismatch: there are more or fewer channels, or neither the layer nor the shape shows where they are.
    """
    dim = ctx.place.channels.of(x, (ctx.facts.rows, ctx.facts.tokens), width)
    if not dim:
        raise VectorMismatch(f"{name} has {width} features, and {channels_not_shown(x, ctx)}")
    check_width(width, x, ctx, name, dim)
    return dim


def channels_not_shown(x: Tensor, ctx: HookContext) -> str:
    """Return the message for an activation for which nothing shows which dimension holds the channels."""
    if ctx.place.channels.given is not None:
        return f"channels={ctx.place.channels.given} is not a dimension of {tuple(x.shape)}, from {ctx.layer!r}"
    return (
        f"neither the class of {ctx.layer!r} nor the shape {tuple(x.shape)} of its activation shows which dimension "
        "holds the channels: pass channels= to the hook, 1 for dimension 1 or -1 for the last"
    )


def _copied(
    value: Any,
    name: str,
    form: str,
    dims: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: str | None = "cpu",  # not every device has float64
) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor {form}, not a {type(value).__name__}: use torch.as_tensor(...), or a mapping "
            "from layer to tensor"
        )
    if (reason := unusable(value)) is not None:
        raise ValueError(f"{name} must be a float tensor {form}, and the one given {reason}")
    if value.dim() not in dims or not value.numel() or not value.is_floating_point():
        raise ValueError(f"{name} must be a float tensor {form}, not {value.dtype} of shape {tuple(value.shape)}")
    with torch.inference_mode(False):
        copy = value.detach().to(device or value.device, dtype, copy=True)
    if not torch.isfinite(copy).all():
        raise ValueError(f"{name} holds {int((~torch.isfinite(copy)).sum())} values that are not finite")
    return copy


def _scaled_to_one(rows: Tensor, name: str) -> Tensor:
    lengths = rows.norm(dim=-1, keepdim=True)
    if not lengths.all():
        which = f"row {int((lengths == 0).nonzero()[0, 0])} of {name}" if len(rows) > 1 else name
        raise ValueError(f"{which} has length 0: it has no direction")
    scaled: Tensor = rows / lengths
    return scaled
