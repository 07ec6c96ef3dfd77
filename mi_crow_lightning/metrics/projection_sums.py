"""The running summaries of projections, by stage: the state behind `ProjectionDetector`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.projections import Projection, empty_projections, merge_projections
from mi_crow_lightning.metrics.running_sums import RunningSums

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


class ProjectionSums(RunningSums):
    """Sums of the projections on ``K`` directions at ``L`` layers, for each stage: rows ``(K, 6)``.

    Args:
        layers: the number of layers.
        vectors: the number of directions.
        device: where the sums are kept, see `RunningSums`.

    Examples:
        >>> from mi_crow_lightning.metrics.collectives import exchange
        >>> sums = ProjectionSums(1, 1, torch.device("cpu"))
        >>> for value in (1.0, 3.0):
        ...     sums.add("train", 0, torch.tensor([[1, value, 0, value / 5, value, value]], dtype=torch.float64))
        >>> sums.values_of(exchange([sums.share("train")])[0])[0][0].mean
        2.0
    """

    def __init__(self, layers: int, vectors: int, device: torch.device) -> None:
        super().__init__(layers, empty_projections(vectors), merge_projections, device)

    @staticmethod
    def values_of(rows: Tensor) -> list[list[ProjectionValues | None]]:
        """Read the values of sums ``(L, K, 6)``: ``L`` lists of ``K``, ``None`` where nothing was seen."""
        return [[_values(row) for row in of_layer] for of_layer in rows.tolist()]


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
