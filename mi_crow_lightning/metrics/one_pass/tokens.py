"""An activation of any shape as tokens and channels, and its mask beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def as_tokens(x: Tensor, mask: Tensor | None, channels: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the arguments of `measure` as ``(N, D)``, and ``(N, 1)`` or, if the mask chooses elements, ``(N, D)``.

    Raises:
        TypeError, ValueError: as `measure` does.
    """
    check(x, mask)
    return _tokens(x.detach(), mask, channels)


def check(x: Tensor, mask: Tensor | None) -> None:
    """Refuse an activation that holds no floating-point numbers, or a mask that does not fit it.

    Raises:
        TypeError, ValueError: as `measure` does.
    """
    if not x.is_floating_point():
        raise TypeError(f"activations must be floating-point, not {x.dtype} (shape {tuple(x.shape)})")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be torch.bool, not {mask.dtype}; for an attention mask pass mask.bool()")
    if mask.shape != x.shape[: mask.dim()]:
        raise ValueError(
            f"the mask's shape {tuple(mask.shape)} is not the shape of the leading dimensions "
            f"of the activations' {tuple(x.shape)}"
        )


def _tokens(x: Tensor, mask: Tensor | None, channels: int | None) -> tuple[Tensor, Tensor | None]:
    """Return ``x`` as ``(N, D)``, channels last, and the mask as ``(N, 1)``, or ``(N, D)`` if it chooses elements."""
    if channels is None:
        channels = 1 if x.dim() == 4 and (mask is None or mask.dim() < 2) else -1
    if channels != -1:
        x = x.movedim(channels, -1)
    width = x.shape[-1] if x.dim() else 1
    tokens = x.reshape(math.prod(x.shape[:-1]), width)
    if mask is None:
        return tokens, None
    if mask.dim() == x.dim():
        return tokens, mask.reshape(tokens.shape)
    lead = x.shape[:-1]
    if mask.shape == lead:
        return tokens, mask.reshape(-1, 1)
    return tokens, mask[(...,) + (None,) * (len(lead) - mask.dim())].expand(lead).reshape(-1, 1)
