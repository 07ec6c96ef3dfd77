"""Correlations, areas and intervals, in numpy alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DRAWS = 2000


def pearson(x: Any, y: Any) -> float:
    """Return the correlation; nan where one of the two does not vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def ranks(x: Any) -> np.ndarray:
    """Return ranks from 1; equal values share the mean of theirs."""
    x = np.asarray(x, float)
    return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) + 1) / 2


def spearman(x: Any, y: Any) -> float:
    """Return the correlation of the ranks."""
    return pearson(ranks(x), ranks(y))


def auroc(positive: Any, negative: Any) -> float:
    """Return how often a positive number is the larger one; ties count half."""
    positive, negative = np.asarray(positive, float)[:, None], np.asarray(negative, float)
    return float((positive > negative).mean() + (positive == negative).mean() / 2)


def z_scores(x: Any) -> np.ndarray:
    """Return ``x`` less its mean, in units of its spread."""
    x = np.asarray(x, float)
    return (x - x.mean()) / (x.std() or 1.0)


def without_group_means(x: Any, groups: Sequence[Any]) -> np.ndarray:
    """Return ``x`` less the mean of its group."""
    x = np.array(x, float)
    for group in set(groups):
        of_group = [i for i, one in enumerate(groups) if one == group]
        x[of_group] -= x[of_group].mean()
    return x


def interval(
    statistic: Callable[[list], float],
    items: Sequence[Any],
    key: Callable[[Any], Any] | None = None,
    share: float = 0.95,
) -> tuple[float, float, float]:
    """Return a statistic of the items, and its percentile bootstrap interval.

    Args:
        statistic: a function of a list of items.
        items: what is drawn from, with replacement.
        key: items with an equal key are drawn together; left out, one by one.
        share: how much of the bootstrap's distribution the interval holds.
    """
    groups: dict[Any, list] = {}
    for i, item in enumerate(items):
        groups.setdefault(i if key is None else key(item), []).append(item)
    clusters, random = list(groups.values()), np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        drawn = [item for i in random.integers(len(clusters), size=len(clusters)) for item in clusters[i]]
        found.append(statistic(drawn))
    tail = 50 * (1 - share)
    low, high = np.nanpercentile(found, [tail, 100 - tail])
    return float(statistic(list(items))), float(low), float(high)
