"""Adding one activation to the state of its layer, in place.

No method of torchmetrics is on the way: their wrappers break the graphs of ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.buffers import Place, Start, place_at
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.metrics.one_pass.in_numba.elements import Elements
from mi_crow_lightning.metrics.one_pass.measure import measure_tokens, sums_after_kernels, sums_in_chunks
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import launched, suits
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, merge_all
from mi_crow_lightning.metrics.summary import Group

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum


@torch.no_grad()
def accumulate(
    place: Place,
    tokens: Tensor,
    keep: Tensor | None,
    groups: Group,
    batch: int | Tensor | None = None,
    sums: Sequence[Sum] = (),
) -> None:
    """Add an activation to a row and its channels.

    If the activation has more or fewer channels than there is room for, its channels are left out and the row is
    marked as mixed.

    Args:
        place: where to add, on any device.
        tokens: ``(N, D)``, see `as_tokens`.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        batch: the batch's index, as an integer, or as a tensor ``()`` so that a compiled graph is not compiled again
            for each batch.
        sums: the further sums.
    """
    room = len(place.sums)
    mixed = Group.CHANNELS in groups and tokens.shape[1] not in (0, room)
    if not mixed and not isinstance(batch, Tensor) and _in_kernel(place, tokens, keep, groups, batch):
        if sums:
            _merge_in(place.row[ROW_SIZE:], sums_after_kernels(tokens, keep, sums), sums)
        return
    seen, channels = (part.to(place.row.device) for part in measure_tokens(tokens, keep, groups, sums))
    if batch is not None:
        seen[Row.BAD_BATCH] = torch.where(seen[Row.NONFINITE] > 0, batch, seen[Row.BAD_BATCH])
    if mixed:
        seen[Row.MIXED] = 1
        seen[Row.CHANNELS] = room
    elif channels.shape[1]:
        place.sums.add_(channels[0])
        torch.maximum(place.peaks, channels[1], out=place.peaks)
    place.row.copy_(merge_all(torch.stack([place.row, seen]), sums))


def accumulate_by_numba(
    buffer: Tensor,
    start: Start,
    elements: Elements,
    groups: int,
    batch: int | None,
    sums: Sequence[Sum] = (),
) -> None:
    """Add an activation that numba can read to a layer's numbers in a buffer, in fewer steps than `accumulate`.

    Args:
        buffer: the numbers of all layers, on the CPU.
        start: where those of the layer begin.
        elements: the activation and its mask.
        groups: what to compute, the value of a `Group`.
        batch: the batch's index.
        sums: the further sums.
    """
    in_numba.launch(elements, groups, buffer, start, batch)
    if sums:
        tokens, keep = elements.as_tokens()
        with torch.no_grad():
            _merge_in(place_at(buffer, start, sums).row[ROW_SIZE:], sums_in_chunks(tokens, keep, sums), sums)


def _merge_in(kept: Tensor, seen: Tensor, sums: Sequence[Sum]) -> None:
    both = torch.stack([kept, seen])
    kept.copy_(torch.stack([one.merge.join(both[:, place]) for place, one in enumerate(sums)]))


def _in_kernel(place: Place, tokens: Tensor, keep: Tensor | None, groups: Group, batch: int | None) -> bool:
    if torch.compiler.is_compiling() or tokens.device != place.row.device or not suits(tokens, keep):
        return False
    return launched(tokens, keep, groups, place, add=True, batch=batch)
