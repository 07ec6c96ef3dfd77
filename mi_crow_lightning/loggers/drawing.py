"""The bins of a histogram that a logger draws: finite, and without the empty ones at both ends."""

from __future__ import annotations

import math

from mi_crow_lightning.metrics.histogram import Histogram

__all__ = ["check_edges", "drawn_bins"]


def check_edges(histogram: Histogram, tag: str) -> None:
    """Refuse a histogram whose edges do not fit its bins.

    Raises:
        ValueError: the histogram does not have one edge more than bins.
    """
    edges, bins = len(histogram.edges), len(histogram.counts)
    if edges != bins + 1:
        raise ValueError(f"histogram {tag!r} has {edges} edges and {bins} bins: it must have one edge more than bins")


def drawn_bins(histogram: Histogram, tag: str) -> tuple[list[float], list[float]] | None:
    """Return the edges and the counts to draw, or None when nothing was counted.

    Empty bins at both ends are left out, and neighbouring empty bins in between are joined. The outermost edges are
    the smallest and the largest element.

    Args:
        histogram: edges, counts and moments.
        tag: the histogram's tag, for the error.

    Returns:
        The edges, one more than bins, and the counts.

    Raises:
        ValueError: the histogram does not have one edge more than bins.

    Examples:
        >>> edges, counts = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0), (0.0, 2.0, 0.0, 0.0, 5.0)
        >>> drawn_bins(Histogram(edges, counts, -0.75, 3.0, 7.0, 0.0, 0.0), "activations/h.0")
        ([-0.75, 0.0, 2.0, 3.0], [2.0, 0.0, 5.0])
    """
    check_edges(histogram, tag)
    filled = [i for i, count in enumerate(histogram.counts) if count > 0]
    if not filled:
        return None
    first, last = filled[0], filled[-1]
    low, high = _ends(histogram, first, last)
    limits, counts = _without_empty_runs(histogram.edges[first + 1 : last + 1], histogram.counts[first : last + 1])
    return [low, *limits, high], counts


def _ends(histogram: Histogram, first: int, last: int) -> tuple[float, float]:
    """Return the ends of the picture: minimum and maximum, kept finite and at their bins.

    A single infinity among the activations would blank the picture. Only an outermost bin may hold elements from
    beyond it, so only there may an end lie outside its bin.

    Args:
        histogram: the histogram to draw.
        first: index of the first bin that is not empty.
        last: index of the last bin that is not empty.
    """
    edges = histogram.edges
    inner = (-math.inf, *edges[1:-1], math.inf)
    low = min(max(histogram.minimum, inner[first]), inner[first + 1])
    high = max(min(histogram.maximum, inner[last + 1]), inner[last])
    high = _first_finite(high, edges[last + 1], edges[last])
    low = _first_finite(low, edges[first], edges[first + 1])
    return min(low, high), high


def _first_finite(*candidates: float) -> float:
    return next((number for number in candidates if math.isfinite(number)), 0.0)


def _without_empty_runs(inner: tuple[float, ...], counts: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Join neighbouring empty bins, which saves 16 bytes per bin and leaves the picture the same.

    Args:
        inner: the edges between the bins, one fewer than there are bins.
        counts: the counts of the bins. The first and the last are not empty.
    """
    limits: list[float] = []
    buckets: list[float] = []
    for limit, count in zip(inner, counts[:-1], strict=True):
        if count == 0 and buckets[-1] == 0:
            limits[-1] = limit
        else:
            limits.append(limit)
            buckets.append(count)
    return limits, [*buckets, counts[-1]]
