"""A bounded number of the samples that a direction is made from, to judge it by when the stage is over."""

from __future__ import annotations

import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import gather_rows, is_distributed
from mi_crow_lightning.metrics.flips import Sample

__all__ = ["KeptRows", "wrong_way_share"]

_MOST_ROWS = 512  # of a layer: with as many, a tenth of a standard deviation shows
_MOST_BYTES = 2**27  # of all layers together
_DIFFERENCE, _NEITHER = 2, -1


class KeptRows:
    """The first differences of pairs at each layer, or where there are no pairs the first samples, in float32.

    They are at most 512 rows a layer and 128 MiB on each rank; those that come later are left out.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}  # (n, D + 1) each: a row and its kind, a label or _DIFFERENCE
        self._held = 0

    def add(self, layer: str, x: Tensor, label: Tensor, differences: tuple[Tensor, Tensor] | None) -> None:
        """Add the rows of a batch; nothing here waits for the device.

        Args:
            layer: its name.
            x: ``(B, D)``.
            label: ``(B,)``: 0, 1, or another number for rows that do not count.
            differences: ``(B, D)`` and ``(B,)`` bool, the differences of pairs and which rows are any; ``None`` where
                there are no pairs.
        """
        kept = self._parts.setdefault(layer, [])
        size = 4 * (x.shape[1] + 1)
        room = min(_MOST_ROWS - sum(map(len, kept)), (_MOST_BYTES - self._held) // size)
        if room <= 0:
            return
        kind = label
        if differences is not None:
            x, paired = differences
            first = paired.int().argsort(descending=True, stable=True)[: len(x) // 2]  # at most half are differences
            x, kind = x[first], torch.where(paired[first], _DIFFERENCE, _NEITHER)
        rows = torch.cat([x, kind[:, None]], dim=1).float()[:room]
        self._held += size * len(rows)
        kept.append(rows)

    def sample(self, layer: str, width: int, device: torch.device) -> Sample:
        """Return what was kept at a layer, by all ranks: differences if there are any, else samples.

        Every rank must call this.
        """
        rows = torch.cat([torch.zeros(0, width + 1, device=device), *self._parts.get(layer, ())])
        if is_distributed():
            rows = gather_rows(rows)
        rows = rows[rows.isfinite().all(1)]
        x, kind = rows[:, :-1], rows[:, -1]
        if (kind == _DIFFERENCE).any():
            return Sample(x[kind == _DIFFERENCE], None)
        counts = (kind == 0) | (kind == 1)
        return Sample(x[counts], kind[counts].long())


def wrong_way_share(differences: Tensor) -> float:
    """Return the share of differences ``(n, D)`` that point against the mean of the others; nan of fewer than two.

    Examples:
        >>> wrong_way_share(torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, -0.5], [-1.0, 0.0]]))
        0.25
    """
    if len(differences) < 2:
        return float("nan")
    x = differences.double()
    with_others = x @ x.sum(0) - (x * x).sum(1)
    return float((with_others < 0).double().mean())
