"""Padding where no mask was found anywhere: looked for in the first batch of each stage."""

from __future__ import annotations

import torch
from torch import Tensor

from mi_crow_lightning._warned import warn
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["is_padded", "warn_if_padded"]


def warn_if_padded(ctx: HookContext) -> None:
    """Warn if the token IDs of a pass without any mask look padded.

    Reading IDs waits for the device, so only the first pass of each stage is looked at.
    """
    facts, known = ctx.facts, ctx.place.layers.unmasked
    ids = facts.input_ids
    if ids is None or ids.dim() != 2 or facts.past or not facts.pad_ids:
        return
    if torch.compiler.is_compiling() or ctx.stage in known:
        return
    known[ctx.stage] = is_padded(ids, facts.pad_ids)
    if known[ctx.stage]:
        warn(
            f"the token IDs {tuple(ids.shape)} of {ctx.layer!r}'s model look padded, and neither the model nor the "
            "batch gave an attention mask: every position counts and is edited, padding too. Pass the model its "
            "attention_mask, or HookCallback(token_mask=...).",
            InexactWarning,
            stacklevel=5,
        )


def is_padded(ids: Tensor, pad_ids: tuple[int, ...]) -> bool:
    """Return whether some rows, and not all, begin or end with two or more of one padding ID.

    Args:
        ids: ``(B, T)``.
        pad_ids: the IDs that may stand for padding.

    Examples:
        >>> is_padded(torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]]), (0,))
        True
    """
    if ids.shape[1] < 3:
        return False
    for ends in (ids[:, :2], ids[:, -2:]):
        for pad in pad_ids:
            padded = (ends == pad).all(1)  # (B,)
            if bool(padded.any()) and not bool(padded.all()):
                return True
    return False
