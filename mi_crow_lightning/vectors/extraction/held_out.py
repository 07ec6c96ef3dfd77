"""Held-out samples on directions extracted from others: which layer separates the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import gather_rows, is_distributed
from mi_crow_lightning.metrics.separability import Separability, separability
from mi_crow_lightning.vectors.extraction.row_means import Rows

__all__ = ["HeldOut"]


class HeldOut:
    """Projections of held-out samples: one number for each layer and sample.

    Args:
        directions: by layer, ``(D,)``; their length does not matter.
    """

    def __init__(self, directions: Mapping[str, Tensor]) -> None:
        self._units = {layer: (value / value.norm()).double() for layer, value in directions.items()}
        self._index = {layer: float(i) for i, layer in enumerate(directions)}
        self._parts: list[Tensor] = []  # (B, 3) each: layer, label, projection

    def add(self, layer: str, rows: Rows) -> None:
        """Project the rows of one batch at one layer; nothing here waits for the device.

        Raises:
            ValueError: there is no direction for the layer, or it has another width.
        """
        unit = self._units.get(layer)
        if unit is None or len(unit) != rows.x.shape[1]:
            given = {name: len(value) for name, value in self._units.items()}
            raise ValueError(
                f"there is no direction of width {rows.x.shape[1]} for {layer!r}; those extracted are {given}"
            )
        if unit.device != rows.x.device:
            unit = self._units[layer] = unit.to(rows.x.device)
        place = torch.full_like(rows.label, self._index[layer], dtype=torch.float64)
        self._parts.append(torch.stack([place, rows.label.double(), rows.x @ unit], dim=1))

    def finish(self, layers: Sequence[str], device: torch.device) -> list[Separability]:
        """Return the separability of each layer that was seen, over all ranks.

        Args:
            layers: names of all watched layers, in order.
            device: where collectives run.

        Raises:
            ValueError: a label was of neither class, or one class is missing at a layer.
        """
        empty = torch.zeros(0, 3, dtype=torch.float64, device=device)
        table = torch.cat([empty, *(part.to(device) for part in self._parts)])
        if is_distributed():
            table = gather_rows(table)
        table = table.cpu()
        if (others := int((table[:, 1] == -1).sum())) > 0:
            raise ValueError(
                f"{others} held-out labels (over all layers) are of neither class: give classes=(negative, positive) "
                "as they stand in the labels"
            )
        table = table[table[:, 1] >= 0]
        found = []
        for layer in layers:
            of_layer = table[table[:, 0] == self._index.get(layer, -1.0)]
            if len(of_layer):
                found.append(separability(layer, of_layer[:, 2], of_layer[:, 1].long()))
        return found
