"""The forms of attention masks: which columns each of them shows to be real."""

from __future__ import annotations

from torch import Tensor

__all__ = ["columns_of", "only_themselves"]


def columns_of(mask: Tensor, is_padding: bool = False) -> Tensor:
    """Return the columns that an attention mask shows to be real, ``(B, columns)`` bool.

    A mask ``(B, T)`` says so itself. In a mask of pairs, ``(B, Tq, Tk)`` or ``(B, H, Tq, Tk)``, a column is real if any
    query sees it: the last query alone does not show it where texts are packed, attention has a window, or the last
    token is padding.

    Args:
        mask: the mask; an additive one holds 0, or a small bias, where a query sees a key, and a very negative number
            elsewhere.
        is_padding: whether True is padding, as in torch's key padding masks.

    Examples:
        >>> import torch
        >>> packed = torch.block_diag(torch.ones(1, 1), torch.ones(2, 2).tril())
        >>> columns_of(packed[None, None].bool())
        tensor([[True, True, True]])
    """
    if mask.dim() == 2:
        if mask.is_floating_point() and is_padding:
            return _sees(mask)
        return (mask == 0) if is_padding else (mask != 0)
    return _sees(_pairs(mask)).any(1)


def only_themselves(mask: Tensor) -> Tensor | None:
    """Return the tokens that see nobody else and that nobody else sees, ``(B, Tq)`` bool; ``None`` if none can be so.

    Such a token is a text of one token, or padding that sees itself as a guard against NaN: a mask of pairs does not
    show which.
    """
    if mask.dim() == 2 or mask.shape[-2] < 2 or mask.shape[-1] < mask.shape[-2]:
        return None
    sees = _sees(_pairs(mask))  # (B, Tq, Tk)
    queries = sees.shape[1]
    keys = sees[:, :, -queries:] if sees.shape[2] == queries else sees[:, :, :queries]
    itself = keys.diagonal(dim1=1, dim2=2)
    return itself & (sees.sum(2) == 1) & (keys.sum(1) == 1)


def _pairs(mask: Tensor) -> Tensor:
    """Return a mask of pairs as ``(B, Tq, Tk)``; all heads see alike."""
    return mask.reshape(mask.shape[0], -1, *mask.shape[-2:])[:, 0]


def _sees(mask: Tensor) -> Tensor:
    return mask > -1000.0 if mask.is_floating_point() else mask != 0
