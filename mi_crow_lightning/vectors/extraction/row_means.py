"""One representation for each row of a batch: the mean activation over its chosen tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.vectors.extraction.labels import BatchFacts
from mi_crow_lightning.vectors.extraction.massive import is_dominated

__all__ = ["RowMeans", "Rows"]


class Rows(NamedTuple):
    """The representations of the rows of a batch, at one layer.

    Attributes:
        x: ``(B, D)`` float64; zeros in rows without a chosen token.
        label: ``(B,)``: 1 positive, 0 negative, -1 for another class, -2 without a chosen token.
        pair: ``(B,)``, or ``None``.
        dominated: ``(B,)`` bool: whether one token makes most of the mean.
    """

    x: Tensor
    label: Tensor
    pair: Tensor | None
    dominated: Tensor


class RowMeans:
    """Sums over the chosen tokens of each row, over all passes of one batch: a text and what is generated from it.

    Args:
        facts: labels and pairs of the batch.
    """

    def __init__(self, facts: BatchFacts) -> None:
        self.facts = facts
        self._sums: dict[str, Tensor] = {}  # (B, D)
        self._counts: dict[str, Tensor] = {}  # (B,)
        self._norms: dict[str, Tensor] = {}  # (2, B): the largest norm of a token, and their sum

    def add(self, layer: str, x: Tensor, mask: Tensor | None) -> None:
        """Add one pass at one layer.

        Args:
            layer: its name.
            x: ``(B, T, D)``, ``(B * T, D)``, or ``(B, D)`` where a row is not a sequence.
            mask: ``(B, T)`` or ``(B * T,)`` bool, or ``None`` for all.

        Raises:
            ValueError: the rows of ``x`` are not those of the labels.
        """
        x, mask = self._in_rows(layer, x, mask)
        if x.device.type == "mps":  # which has no float64
            x, mask = x.cpu(), mask if mask is None else mask.cpu()
        if mask is None:
            sums = x.sum(1, dtype=torch.float64)
            counts = torch.full((len(x),), float(x.shape[1]), dtype=torch.float64, device=x.device)
        else:
            # Not x * mask: what padding holds may be infinite.
            sums = torch.where(mask[..., None], x, 0.0).sum(1, dtype=torch.float64)
            counts = mask.sum(1, dtype=torch.float64)
        self._note_norms(layer, x, mask)
        self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums
        self._counts[layer] = self._counts[layer] + counts if layer in self._counts else counts

    def _note_norms(self, layer: str, x: Tensor, mask: Tensor | None) -> None:
        norms = torch.linalg.vector_norm(x.float(), dim=2)  # (B, T)
        if mask is not None:
            norms = norms.masked_fill(~mask, 0.0)
        largest, total = norms.amax(1), norms.sum(1)
        if layer in self._norms:
            before = self._norms[layer]
            largest, total = torch.maximum(largest, before[0]), total + before[1]
        self._norms[layer] = torch.stack([largest, total])

    def _in_rows(self, layer: str, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``x`` as (B, T, D) and ``mask`` as (B, T)."""
        rows = self.facts.rows
        if x.dim() == 2 and mask is not None and len(x) % rows == 0:
            return x.unflatten(0, (rows, -1)), mask.reshape(rows, -1)
        if x.dim() == 2 and len(x) == rows:
            return x[:, None], None
        if x.dim() == 3 and len(x) == rows:
            return x, mask
        raise ValueError(
            f"{layer!r} has an activation of shape {tuple(x.shape)}, and the batch has {rows} labels: an activation "
            "(B, T, D) or (B, D) is needed, with one row for each label (in beam search there are more)"
        )

    def rows(self) -> dict[str, Rows]:
        """Return the representations by layer."""
        found = {}
        for layer, sums in self._sums.items():
            counts = self._counts[layer]
            label = torch.where(counts > 0, self.facts.label.to(counts.device, non_blocking=True), -2)
            pair = self.facts.pair
            pair = None if pair is None else pair.to(counts.device, non_blocking=True)
            largest, total = self._norms[layer].unbind()
            dominated = is_dominated(largest, total, counts)
            found[layer] = Rows(sums / counts.clamp(min=1)[:, None], label, pair, dominated)
        return found
