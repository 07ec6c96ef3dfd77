"""Activations that are not plain tensors: nested ones, and those inside a transform of torch.func.

A nested tensor has no shape; nn.TransformerEncoder makes them in evaluation. Inside vmap, grad and the like a tensor
stands for many others, and must not be kept: it is worthless once the transform is over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mi_crow_lightning.errors import UnreadableActivation

__all__ = ["current_transform", "transformed", "why_unreadable"]

_TRANSFORMED = "it is inside a transform of torch.func (vmap, grad, ...)"

current_transform = torch._C._functorch.maybe_current_level
"""The level of the running transform of torch.func; ``None`` outside all of them."""


def why_unreadable(x: Tensor | None) -> str | None:
    """Return why most hooks cannot read an activation, ``None`` of a plain tensor. It never raises.

    Examples:
        >>> why_unreadable(torch.ones(2)) is None
        True
    """
    if current_transform() is not None:
        return _TRANSFORMED
    try:
        return "it is a nested tensor, whose rows differ in length" if x is not None and x.is_nested else None
    except Exception:  # a lazy parameter answers no question at all
        return None


def transformed() -> UnreadableActivation:
    """Return the error for a detector whose layer runs inside a transform."""
    return UnreadableActivation(
        "the model runs inside a transform of torch.func (vmap, grad, ...), where an activation stands for many "
        "others and cannot be kept. Watch a pass outside of it."
    )
