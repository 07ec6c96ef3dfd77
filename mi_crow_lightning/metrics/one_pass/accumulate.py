"""Adding one activation to the state of its layer, in place.

No method of torchmetrics is on the way: their wrappers break the graphs of ``torch.compile``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.buffers import Place
from mi_crow_lightning.metrics.one_pass.measure import measure_tokens
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import launched, suits
from mi_crow_lightning.metrics.one_pass.summary import Group
from mi_crow_lightning.metrics.rows import Row, merge_all


@torch.no_grad()
def accumulate(
    place: Place, tokens: Tensor, keep: Tensor | None, groups: Group, batch: int | Tensor | None = None
) -> None:
    """Add an activation to a row and its channels.

    Channels of another number than there are room for are left out, and the row is marked as mixed.

    Args:
        place: where to, on any device.
        tokens: ``(N, D)``, see `as_tokens`.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        batch: which batch it is of, an integer or, so that a compiled graph need not be made anew for each, a tensor
            ``()``.
    """
    room = len(place.sums)
    mixed = Group.CHANNELS in groups and tokens.shape[1] not in (0, room)
    if not mixed and not isinstance(batch, Tensor) and _in_kernel(place, tokens, keep, groups, batch):
        return
    seen, channels = (part.to(place.row.device) for part in measure_tokens(tokens, keep, groups))
    if batch is not None:
        seen[Row.BAD_BATCH] = torch.where(seen[Row.NONFINITE] > 0, batch, seen[Row.BAD_BATCH])
    if mixed:
        seen[Row.MIXED] = 1
        seen[Row.CHANNELS] = room
    elif channels.shape[1]:
        place.sums.add_(channels[0])
        torch.maximum(place.peaks, channels[1], out=place.peaks)
    place.row.copy_(merge_all(torch.stack([place.row, seen])))


def _in_kernel(place: Place, tokens: Tensor, keep: Tensor | None, groups: Group, batch: int | None) -> bool:
    if torch.compiler.is_compiling() or tokens.device != place.row.device or not suits(tokens, keep):
        return False
    return launched(tokens, keep, groups, place, add=True, batch=batch)
