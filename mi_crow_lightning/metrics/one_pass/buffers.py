"""The state of many layers in one flat tensor: ``L`` rows, then the channels of layers that differ in width.

``[L rows of ROW_SIZE + S numbers | sums of squares, layer after layer | largest absolute values, layer after layer]``,
all float64: one transfer or one gather moves everything. A row holds the width of its layer. The owner keeps the widths
as integers too, because reading them back waits for the device, and the ``S`` further sums that the rows end with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, empty_rows, merge_all

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum


class Place(NamedTuple):
    """The numbers of one layer, float64 and contiguous, to read from or write to."""

    row: Tensor  # (ROW_SIZE + S,)
    sums: Tensor  # (D,) sums of squares; (0,) without channels
    peaks: Tensor  # (D,) largest absolute values; (0,) without channels


class Start(NamedTuple):
    """The indices in a buffer at which the numbers of one layer begin."""

    row: int
    sums: int
    peaks: int
    width: int  # D, the number of channels


def empty_buffer(widths: Sequence[int], device: torch.device | str | None = None, sums: Sequence[Sum] = ()) -> Tensor:
    """Make the buffer of layers that have seen nothing.

    Args:
        widths: the number of channels of each layer; 0 where it is not known, or not wanted.
        device: where to make it; None is torch's default device.
        sums: the further sums.

    Examples:
        >>> rows, channels = split(empty_buffer([3, 0, 2]), 3)
        >>> tuple(rows.shape) == (3, ROW_SIZE), tuple(channels.shape)
        (True, (2, 5))
    """
    rows = empty_rows(len(widths), device, sums)
    for row, width in zip(rows, widths, strict=True):
        row[Row.CHANNELS] = width
    return torch.cat([rows.flatten(), rows.new_zeros(2 * sum(widths))])


def split(buffer: Tensor, layers: int, sums: Sequence[Sum] = ()) -> tuple[Tensor, Tensor]:
    """Return the rows ``(L, ROW_SIZE + S)`` and the channels ``(2, sum of widths)`` of a buffer, as views."""
    row_size = ROW_SIZE + len(sums)
    rows, channels = buffer[: layers * row_size], buffer[layers * row_size :]
    return rows.view(layers, row_size), channels.view(2, -1)


def place_of(buffer: Tensor, widths: Sequence[int], index: int, sums: Sequence[Sum] = ()) -> Place:
    """Return the numbers of a layer, as views.

    Examples:
        >>> place = place_of(empty_buffer([3, 0, 2]), [3, 0, 2], 2)
        >>> len(place.row) == ROW_SIZE, len(place.sums), len(place.peaks)
        (True, 2, 2)
    """
    return place_at(buffer, starts_of(widths, sums)[index], sums)


def place_at(buffer: Tensor, start: Start, sums: Sequence[Sum] = ()) -> Place:
    """Return the numbers of the layer that begin at `start`, as views."""
    row, squares, peaks, width = start
    end = row + ROW_SIZE + len(sums)
    return Place(buffer[row:end], buffer[squares : squares + width], buffer[peaks : peaks + width])


def starts_of(widths: Sequence[int], sums: Sequence[Sum] = ()) -> list[Start]:
    """Return where the numbers of each layer begin.

    Examples:
        >>> [start.sums - 3 * ROW_SIZE for start in starts_of([3, 0, 2])]
        [0, 3, 3]
    """
    size, total, starts = ROW_SIZE + len(sums), sum(widths), []
    squares = len(widths) * size
    for index, width in enumerate(widths):
        starts.append(Start(index * size, squares, squares + total, width))
        squares += width
    return starts


def widths_in(buffer: Tensor, layers: int, sums: Sequence[Sum] = ()) -> list[int]:
    """Return the widths that the rows hold; waits for the device."""
    return [int(width) for width in split(buffer, layers, sums)[0][:, Row.CHANNELS].tolist()]


def widen(buffer: Tensor, old: Sequence[int], new: Sequence[int], sums: Sequence[Sum] = ()) -> Tensor:
    """Make room for more channels.

    A layer that already has channels and is given more is marked as mixed: its channels do not belong together.

    Args:
        buffer: one of the widths ``old``.
        old: the widths.
        new: the new widths; none may be smaller than the old one.
        sums: the further sums.

    Returns:
        A new buffer of the widths ``new``.
    """
    rows, channels = split(buffer.clone(), len(old), sums)
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
def merge_buffers(stacked: Tensor, layers: int, sums: Sequence[Sum] = ()) -> Tensor:
    """Join the buffers of several ranks, all of the same widths: ``(R, size)`` to ``(size,)``.

    Examples:
        >>> merge_buffers(torch.stack([empty_buffer([1]), empty_buffer([1])]), 1).shape == empty_buffer([1]).shape
        True
    """
    ranks, row_size = len(stacked), ROW_SIZE + len(sums)
    size = layers * row_size
    rows = merge_all(stacked[:, :size].reshape(ranks, layers, row_size), sums)
    squares, peaks = stacked[:, size:].reshape(ranks, 2, -1).unbind(1)
    return torch.cat([rows.flatten(), squares.sum(0), peaks.amax(0)])


def join_buffers(buffers: Sequence[Tensor], layers: int, sums: Sequence[Sum] = ()) -> Tensor:
    """Join buffers of any widths.

    Args:
        buffers: the buffers, each of ``layers`` layers.
        layers: the number of layers.
        sums: the further sums.
    """
    each = [widths_in(buffer, layers, sums) for buffer in buffers]
    widest = [max(widths) for widths in zip(*each, strict=True)]
    wide = [widen(one, old, widest, sums) for one, old in zip(buffers, each, strict=True)]
    return merge_buffers(torch.stack(wide), layers, sums)
