"""The histogram as a value: a detector computes it on the device, and a logger draws it."""

from __future__ import annotations

from typing import NamedTuple


class Histogram(NamedTuple):
    """Counts between bin edges, with the moments that TensorBoard's format asks for.

    Attributes:
        edges: the ``N + 1`` bin edges, ascending.
        counts: the number of elements in each of the ``N`` bins.
        minimum: the smallest element.
        maximum: the largest element.
        total: the number of elements (the sum of ``counts``).
        sum: the sum of the elements.
        sum_squares: the sum of the squared elements.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    minimum: float
    maximum: float
    total: float
    sum: float
    sum_squares: float
