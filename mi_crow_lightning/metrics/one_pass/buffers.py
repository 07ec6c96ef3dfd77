"""The state of many layers in one flat tensor: ``L`` rows, then a channel part as ragged as the layers are wide.

``[L * ROW_SIZE numbers | sums of squares, layer after layer | largest absolute values, layer after layer]``, all
float64: one transfer or one gather moves everything. How wide a layer is stands in its row, so a buffer
describes itself; the owner keeps the widths as integers too, because reading them back waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, empty_rows, merge_all


class Place(NamedTuple):
    """The numbers of one layer, float64 and contiguous, to be read or written."""

    row: Tensor  # (ROW_SIZE,)
    sums: Tensor  # (D,) sums of squares; (0,) without channels
    peaks: Tensor  # (D,) largest absolute values; (0,) without channels


def empty_buffer(widths: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Make the buffer of layers that have seen nothing.

    Args:
        widths: the number of channels of each layer; 0 where it is not known, or not wanted.
        device: where to make it; None is torch's default device.

    Examples:
        >>> rows, channels = split(empty_buffer([3, 0, 2]), 3)
        >>> tuple(rows.shape) == (3, ROW_SIZE), tuple(channels.shape)
        (True, (2, 5))
    """
    rows = empty_rows(len(widths), device)
    for row, width in zip(rows, widths, strict=True):
        row[Row.CHANNELS] = width
    return torch.cat([rows.flatten(), rows.new_zeros(2 * sum(widths))])


def split(buffer: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """The rows ``(L, ROW_SIZE)`` and the channel part ``(2, sum of widths)`` of a buffer, as views."""
    rows, channels = buffer[: layers * ROW_SIZE], buffer[layers * ROW_SIZE :]
    return rows.view(layers, ROW_SIZE), channels.view(2, -1)


def place_of(buffer: Tensor, widths: Sequence[int], index: int) -> Place:
    """Where the numbers of a layer are, as views.

    Examples:
        >>> place = place_of(empty_buffer([3, 0, 2]), [3, 0, 2], 2)
        >>> len(place.row) == ROW_SIZE, len(place.sums), len(place.peaks)
        (True, 2, 2)
    """
    sums, width = len(widths) * ROW_SIZE + sum(widths[:index]), widths[index]
    return Place(
        buffer.narrow(0, index * ROW_SIZE, ROW_SIZE),
        buffer.narrow(0, sums, width),
        buffer.narrow(0, sums + sum(widths), width),
    )


def widths_in(buffer: Tensor, layers: int) -> list[int]:
    """The widths that stand in the rows; waits for the device."""
    return [int(width) for width in split(buffer, layers)[0][:, Row.CHANNELS].tolist()]


def widen(buffer: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Make room for more channels.

    A layer that has seen some channels and is given more is marked as mixed: its channels do not belong
    together.

    Args:
        buffer: of the widths ``old``.
        old: the widths.
        new: the widths to be; none smaller than the old one.

    Returns:
        A new buffer of the widths ``new``.
    """
    rows, channels = split(buffer.clone(), len(old))
    parts = [channels]
    if list(old) != list(new):
        pieces = channels.split(list(old), dim=1)
        parts = [pad(piece, (0, n - o)) for piece, o, n in zip(pieces, old, new, strict=True)]
    for row, before, after in zip(rows, old, new, strict=True):
        row[Row.CHANNELS] = after
        if 0 < before < after:
            row[Row.MIXED] = 1
    return torch.cat([rows.flatten(), torch.cat(parts, dim=1).flatten()])


@torch.no_grad()
def merge_buffers(stacked: Tensor, layers: int) -> Tensor:
    """Join the buffers of several ranks, all of the same widths: ``(R, size)`` to ``(size,)``.

    Examples:
        >>> merge_buffers(torch.stack([empty_buffer([1]), empty_buffer([1])]), 1).shape == empty_buffer([1]).shape
        True
    """
    ranks, size = len(stacked), layers * ROW_SIZE
    rows = merge_all(stacked[:, :size].reshape(ranks, layers, ROW_SIZE))
    sums, peaks = stacked[:, size:].reshape(ranks, 2, -1).unbind(1)
    return torch.cat([rows.flatten(), sums.sum(0), peaks.amax(0)])


def join_buffers(buffers: Sequence[Tensor], layers: int) -> Tensor:
    """Join buffers of any widths.

    Args:
        buffers: each of ``layers`` layers.
        layers: how many.
    """
    each = [widths_in(buffer, layers) for buffer in buffers]
    widest = [max(widths) for widths in zip(*each, strict=True)]
    return merge_buffers(torch.stack([widen(one, old, widest) for one, old in zip(buffers, each, strict=True)]), layers)
