"""The running summaries of projections, by stage: the state behind `ProjectionDetector`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import Share, Shares
from mi_crow_lightning.metrics.projections import Projection, empty_projections, merge_projections

__all__ = ["ProjectionSums", "ProjectionValues"]


class ProjectionValues(NamedTuple):
    """The values that are read from the projections on one direction, at one layer.

    Attributes:
        mean: the tokens' mean projection, in units of the activation.
        std: the standard deviation of the projections (population).
        min: the smallest projection.
        max: the largest projection.
        cosine: the tokens' mean cosine.
    """

    mean: float
    std: float
    min: float
    max: float
    cosine: float


class ProjectionSums:
    """Sums of the projections on ``K`` directions at ``L`` layers, for each stage.

    Args:
        layers: the number of layers.
        vectors: the number of directions.
        device: where the sums are kept. They are float64, which Apple's GPUs do not have: for those they are kept on
            the CPU.

    Examples:
        >>> from mi_crow_lightning.metrics.collectives import exchange
        >>> sums = ProjectionSums(1, 1, torch.device("cpu"))
        >>> for value in (1.0, 3.0):
        ...     sums.add("train", 0, torch.tensor([[1, value, 0, value / 5, value, value]], dtype=torch.float64))
        >>> sums.values_of(exchange([sums.share("train")])[0])[0][0].mean
        2.0
    """

    def __init__(self, layers: int, vectors: int, device: torch.device) -> None:
        self._shape = (layers, vectors)
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._rows: dict[str, Tensor] = {}

    def prepare(self, stages: Iterable[str]) -> None:
        """Make the sums of stages now: a graph of ``torch.compile`` adds to them and cannot make them."""
        for stage in stages:
            self._of(stage)

    def add(self, stage: str, layer: int, seen: Tensor) -> None:
        """Add the summary of one pass, ``(K, 6)``, at one layer, without waiting for the device."""
        rows = self._of(stage)[layer]
        rows.copy_(merge_projections(torch.stack([rows, seen.to(rows.device)])))

    def share(self, stage: str) -> Shares:
        """Share the sums, for `exchange`; `values_of` reads the merged ones."""
        rows = yield Share(self._of(stage), merge_projections)
        return rows

    @staticmethod
    def values_of(rows: Tensor) -> list[list[ProjectionValues | None]]:
        """Read the values of sums ``(L, K, 6)``: ``L`` lists of ``K``, ``None`` where nothing was seen."""
        return [[_values(row) for row in of_layer] for of_layer in rows.tolist()]

    def reset(self, stage: str) -> None:
        """Set the sums of a stage back to nothing."""
        if stage in self._rows:
            self._rows[stage].copy_(empty_projections(*self._shape, device=self._device))

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the sums on the CPU, by stage."""
        return {stage: rows.cpu().clone() for stage, rows in self._rows.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for stage in {*self._rows, *state}:
            self.reset(stage)
        for stage, rows in state.items():
            self._of(stage).copy_(rows)

    def _of(self, stage: str) -> Tensor:
        if stage not in self._rows:
            with torch.inference_mode(False):  # one tensor serves prediction and training
                self._rows[stage] = empty_projections(*self._shape, device=self._device)
        return self._rows[stage]


def _values(row: list[float]) -> ProjectionValues | None:
    count = row[Projection.COUNT]
    if not count:
        return None
    return ProjectionValues(
        mean=row[Projection.MEAN],
        std=math.sqrt(row[Projection.M2] / count),
        min=row[Projection.MINIMUM],
        max=row[Projection.MAXIMUM],
        cosine=row[Projection.COSINES] / count,
    )
