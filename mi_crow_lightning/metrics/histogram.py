"""The histogram as a value: what a detector computed on the device and a logger draws."""

from __future__ import annotations

from typing import NamedTuple


class Histogram(NamedTuple):
    """Counts between bin edges, with the moments TensorBoard's format asks for.

    Attributes:
        edges: ascending bin edges, ``N + 1`` of them.
        counts: number of elements in each of the ``N`` bins.
        minimum: smallest element seen.
        maximum: largest element seen.
        total: number of elements (the sum of ``counts``).
        sum: sum of the elements.
        sum_squares: sum of the squared elements.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    minimum: float
    maximum: float
    total: float
    sum: float
    sum_squares: float
