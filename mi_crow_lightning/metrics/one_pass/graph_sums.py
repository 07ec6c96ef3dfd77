"""The sums of one layer in separate tensors, to which a graph of ``torch.compile`` adds.

The tensors are made while the graph is made, when the layer's width shows: a graph can write to tensors, but a tensor
that it made itself in inference mode could not be written to later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.accumulate import accumulate
from mi_crow_lightning.metrics.one_pass.buffers import Place
from mi_crow_lightning.metrics.one_pass.tokens import as_tokens
from mi_crow_lightning.metrics.rows import Row, empty_rows
from mi_crow_lightning.metrics.summary import Group

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum

__all__ = ["LayerSums", "take_sums"]


class LayerSums:
    """The summary of a layer's activations since it was last taken.

    Args:
        groups: what to compute.
        device: where the sums are kept.
        sums: the further sums.

    Attributes:
        place: the sums; ``None`` until the first activation.

    Examples:
        >>> sums = LayerSums(Group.ALL, torch.device("cpu"))
        >>> sums.add(torch.tensor([[1.0, 3.0]]), None, None)
        >>> sums.place.row[Row.MEAN].item(), sums.place.peaks.tolist()
        (2.0, [1.0, 3.0])
    """

    def __init__(self, groups: Group, device: torch.device, sums: Sequence[Sum] = ()) -> None:
        self.place: Place | None = None
        self._groups = groups
        self._device = device
        self._sums = tuple(sums)

    def add(self, x: Tensor, mask: Tensor | None, batch: Tensor | None, channels: int | None = None) -> None:
        """Add an activation; the arguments are those of `ActivationStatisticsMetric.accumulate`."""
        tokens, keep = as_tokens(x, mask, channels)
        _make_room(self, tokens.shape[1])
        assert self.place is not None
        accumulate(self.place, tokens, keep, self._groups, batch, self._sums)

    def make_room(self, width: int) -> None:
        """Make the tensors, if there are none yet."""
        if self.place is None:
            self.place = self.empty_place(width if Group.CHANNELS in self._groups else 0)

    def empty_place(self, width: int) -> Place:
        """Make tensors that have seen nothing."""
        with torch.inference_mode(False), torch.no_grad():
            row = self._empty_row(width)
            return Place(row, row.new_zeros(width), row.new_zeros(width))

    def clear(self) -> None:
        """Start again from nothing, in the same tensors: a graph may hold on to them."""
        if self.place is not None:
            self.place.row.copy_(self._empty_row(len(self.place.sums)))
            self.place.sums.zero_()
            self.place.peaks.zero_()

    def _empty_row(self, width: int) -> Tensor:
        row = empty_rows(1, self._device, self._sums)[0]
        row[Row.CHANNELS] = width
        return row


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _make_room(sums: LayerSums, width: int) -> bool:
    """Make room for the channels; in a graph this runs once, while the graph is made."""
    sums.make_room(width)
    return True


def take_sums(layers: Sequence[LayerSums]) -> tuple[Tensor, list[int]] | None:
    """Return the sums of layers as one buffer, with the layers' widths, and clear them; ``None`` where none has any.

    Examples:
        >>> sums = LayerSums(Group.ALL, torch.device("cpu"))
        >>> sums.add(torch.tensor([[1.0, 3.0]]), None, None)
        >>> take_sums([sums])[1], sums.place.row[Row.COUNT].item()
        ([2], 0.0)
    """
    if all(one.place is None for one in layers):
        return None
    places = [one.place if one.place is not None else one.empty_place(0) for one in layers]
    rows, sums, peaks = (torch.cat(parts) for parts in zip(*places, strict=True))
    for one in layers:
        one.clear()
    return torch.cat([rows, sums, peaks]), [len(place.sums) for place in places]
