"""Moments of two classes at each layer, and the directions that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import CaptureBudgetExceeded
from mi_crow_lightning.metrics.class_directions import mean_difference, principal_difference
from mi_crow_lightning.metrics.class_moments import GROUPS, ClassMoments, reduce_moments
from mi_crow_lightning.metrics.collectives import gather, gather_rows, is_distributed
from mi_crow_lightning.metrics.flips import p_values
from mi_crow_lightning.metrics.logistic import logistic
from mi_crow_lightning.metrics.pair_agreement import PairAgreement
from mi_crow_lightning.metrics.reliability import Reliability
from mi_crow_lightning.vectors.extraction.kept_rows import KeptRows, wrong_way_share
from mi_crow_lightning.vectors.extraction.massive import warn_of_dominated_means
from mi_crow_lightning.vectors.extraction.row_means import Rows
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["METHODS", "Extraction"]


class Extraction:
    """Running moments of each layer, and its samples where they are kept.

    Args:
        scatter: groups whose scatter matrix is kept, see `ClassMoments`.
        keep_samples: whether to keep every sample, float32.
        max_bytes: the most memory that samples may take; ``None`` for no limit.

    Attributes:
        moments: the moments of each layer, by name.
        reliability: how far they can be relied on, from `reduce` on; empty of what `from_tensors` made.
    """

    def __init__(self, scatter: Sequence[str] = (), keep_samples: bool = False, max_bytes: int | None = None) -> None:
        self.moments: dict[str, ClassMoments] = {}
        self.reliability: list[Reliability] = []
        self.keeps_samples = keep_samples
        self._scatter = tuple(scatter)
        self._max_bytes = max_bytes
        self._samples: dict[str, list[Tensor]] = {}  # (n, D + 1) each: the sample and its label
        self._held = 0
        self._odd: dict[str, Tensor] = {}  # (3,): rows of other classes, without a chosen token, dominated by one
        self._directions: dict[str, dict[str, Tensor]] = {}
        self._agreement: dict[str, PairAgreement] = {}
        self._rows = KeptRows()

    def add(self, layer: str, rows: Rows) -> None:
        """Add the rows of one batch at one layer; nothing here waits for the device.

        Raises:
            CaptureBudgetExceeded: the samples would take more than ``max_bytes``.
        """
        if layer not in self.moments:
            self._open(layer, rows.x.shape[1], rows.x.device)
        if self.keeps_samples:
            self._keep(layer, rows)
        differences = self.moments[layer].update(rows.x, rows.label, rows.pair)
        self._agreement[layer].update(*differences)
        self._rows.add(layer, rows.x, rows.label, None if rows.pair is None else differences)
        self._odd[layer] += torch.stack([(rows.label == -1).sum(), (rows.label == -2).sum(), rows.dominated.sum()])

    def _open(self, layer: str, width: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.moments[layer] = ClassMoments(width, self._scatter, device)
            self._odd[layer] = torch.zeros(3, dtype=torch.int64, device=device)
            self._samples[layer] = []
            self._agreement[layer] = PairAgreement(width, device)

    def _keep(self, layer: str, rows: Rows) -> None:
        size = 4 * rows.x.shape[0] * (rows.x.shape[1] + 1)
        if self._max_bytes is not None and self._held + size > self._max_bytes:
            raise CaptureBudgetExceeded(
                f"keeping the samples of {layer!r} would take {self._held + size:,} bytes, and "
                f"max_bytes={self._max_bytes:,}: watch fewer layers, give fewer samples, raise max_bytes, or leave "
                "keep_samples out, which only method='logistic' needs"
            )
        self._held += size
        self._samples[layer].append(torch.cat([rows.x, rows.label[:, None]], dim=1).float())

    def reduce(self, layers: Sequence[str], device: torch.device) -> None:
        """Join what all ranks have gathered, and refuse labels of other classes.

        Args:
            layers: all that are watched, in an order that is the same on every rank.
            device: where collectives run.

        Raises:
            ValueError: a label was of neither class, or a layer's width differs between ranks.
        """
        if is_distributed():
            self._open_what_other_ranks_saw(layers, device)
            seen = [layer for layer in layers if layer in self.moments]
            reduce_moments([self.moments[layer] for layer in seen])
            for layer in seen:
                self._agreement[layer].sums = torch.stack(gather(self._agreement[layer].sums)).sum(0)
            if self.keeps_samples:
                self._samples = {layer: [gather_rows(self._joined(layer))] for layer in seen}
        self.moments = {layer: self.moments[layer] for layer in layers if layer in self.moments}
        if self._odd:
            by_layer = dict(
                zip(self._odd, torch.stack([odd.cpu() for odd in self._odd.values()]).tolist(), strict=True)
            )
            _refuse_others(max(others for others, _, _ in by_layer.values()))
            _warn_of_rows_without_tokens(max(without for _, without, _ in by_layer.values()))
            negative, positive, _ = self.counts()
            warn_of_dominated_means({layer: odd[2] for layer, odd in by_layer.items()}, negative + positive)
        self._judge()

    def _judge(self) -> None:
        """Make `reliability` of what was kept for it, and let that go."""
        rows, self._rows = self._rows, KeptRows()
        kept = [rows.sample(layer, one.mean.shape[1], one.mean.device) for layer, one in self.moments.items()]
        self.reliability = []
        for layer, sample, p in zip(self.moments, kept, p_values(kept), strict=True):
            agreement, difference = self._agreement[layer], self.moments[layer].of("difference")
            wrong = wrong_way_share(sample.x) if sample.label is None else float("nan")
            row = Reliability(
                layer,
                coherence=agreement.coherence(difference.mean),
                pairwise=agreement.pairwise(),
                anti_steerable=wrong,
                p_value=p,
                n=difference.n or len(sample.x),
            )
            self.reliability.append(row)

    def _open_what_other_ranks_saw(self, layers: Sequence[str], device: torch.device) -> None:
        mine = torch.zeros(len(layers), 4, dtype=torch.int64, device=device)
        for i, layer in enumerate(layers):
            if layer in self.moments:
                mine[i, 0] = self.moments[layer].mean.shape[1]
                mine[i, 1:] = self._odd[layer]
        ranks = torch.stack(gather(mine))
        widths = ranks[..., 0].amax(0)
        if ((ranks[..., 0] != 0) & (ranks[..., 0] != widths)).any():
            raise ValueError(f"the layers' widths differ between ranks: {ranks[..., 0].tolist()}")
        for i, layer in enumerate(layers):
            if widths[i] and layer not in self.moments:
                self._open(layer, int(widths[i]), device)
            if widths[i]:
                self._odd[layer] = ranks[:, i, 1:].sum(0)

    def directions(self, method: str) -> dict[str, Tensor]:
        """Return the direction of each layer by one of `METHODS`, ``(D,)`` float64.

        Raises:
            ValueError: the method is not known, or what was gathered does not allow it.
        """
        if method not in METHODS:
            raise not_known("method", method, METHODS)
        if method not in self._directions:
            with torch.inference_mode(False):
                self._directions[method] = {layer: METHODS[method](self, layer) for layer in self.moments}
        return self._directions[method]

    def counts(self) -> tuple[int, int, int]:
        """Return how many samples there are of the negative class, of the positive one, and how many pairs."""
        moments = next(iter(self.moments.values()))
        negative, positive, pairs = (moments.of(group).n for group in GROUPS)
        return negative, positive, pairs

    def samples(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return the samples of a layer ``(N, D)`` and their labels ``(N,)``.

        Raises:
            ValueError: samples were not kept.
        """
        if not self.keeps_samples:
            raise ValueError("method='logistic' needs the samples, which were not kept: give keep_samples=True")
        joined = self._joined(layer)
        joined = joined[joined[:, -1] >= 0]
        return joined[:, :-1], joined[:, -1].long()

    def _joined(self, layer: str) -> Tensor:
        moments = self.moments[layer]
        empty = torch.zeros(0, moments.mean.shape[1] + 1, device=moments.mean.device)
        return torch.cat([empty, *self._samples[layer]])

    def tensors(self) -> dict[str, Any]:
        """Return copies of everything that `from_tensors` needs, on the CPU."""
        return {
            "moments": {layer: moments.tensors() for layer, moments in self.moments.items()},
            "samples": {layer: self._joined(layer).cpu() for layer in self.moments} if self.keeps_samples else {},
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Any]) -> Extraction:
        """Make the extraction that `tensors` was called on again."""
        made = cls(keep_samples=bool(tensors["samples"]))
        made.moments = {layer: ClassMoments.from_tensors(kept) for layer, kept in tensors["moments"].items()}
        made._samples = {layer: [joined] for layer, joined in tensors["samples"].items()}
        return made


def _logistic(extraction: Extraction, layer: str) -> Tensor:
    return logistic(*extraction.samples(layer))


METHODS: dict[str, Callable[[Extraction, str], Tensor]] = {
    "mean_difference": lambda extraction, layer: mean_difference(extraction.moments[layer]),
    "pca": lambda extraction, layer: principal_difference(extraction.moments[layer]),
    "logistic": _logistic,
}
"""The methods by name: each makes the direction of a layer from an extraction."""


def _refuse_others(count: int) -> None:
    if count:
        raise ValueError(
            f"{count} rows have a label of neither class: give classes=(negative, positive) as they stand in the labels"
        )


def _warn_of_rows_without_tokens(count: int) -> None:
    if count:
        warn(f"{count} rows were left out: they hold no chosen token", InexactWarning, stacklevel=2)
