"""Reading statistics from a summary, over the finite elements of the tokens that count.

The statistics and their formulas are declared in ``known_statistics.py``; the moments and how they merge are in
``rows.py``, with the sources. What each statistic says about a layer is in ``docs/reference/statistics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mi_crow_lightning.metrics.histogram import Histogram
from mi_crow_lightning.metrics.known_statistics import (
    FIELDS,
    SHOWN,
    STATISTICS,
    described,
    groups_of,
    known_names,
    statistic,
    sums_of,
)
from mi_crow_lightning.metrics.log2_bins import EDGES
from mi_crow_lightning.metrics.one_pass.measure import measure, summarize
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, check_rows, empty_rows, merge, merge_all
from mi_crow_lightning.metrics.statistic import Sum
from mi_crow_lightning.metrics.summary import Group, Summary

__all__ = [
    "EDGES",
    "ROW_SIZE",
    "SHOWN",
    "STATISTICS",
    "Group",
    "Row",
    "Summary",
    "channel_rms",
    "channel_statistics",
    "described",
    "empty_rows",
    "groups_of",
    "histogram",
    "histogram_of",
    "known_names",
    "measure",
    "merge",
    "merge_all",
    "statistics",
    "summarize",
    "sums_of",
]


@torch.no_grad()
def statistics(rows: Tensor, sums: Sequence[Sum] = (), names: Iterable[str] = STATISTICS) -> dict[str, Tensor]:
    """Read the statistics that rows hold: all but those of channels, which `channel_statistics` reads.

    Args:
        rows: ``(..., ROW_SIZE + S)``, for example those of ``L`` layers.
        sums: the ``S`` further sums that the rows hold.
        names: which statistics.

    Returns:
        Name -> ``(...)`` float64. A value is nan where nothing finite was seen, except ``nonfinite_count``;
        ``nonfinite_batch`` is nan where no element was nan or infinite, and ``kurtosis`` where all elements are equal.

    Raises:
        ValueError: the last dimension is not ``ROW_SIZE + S``.
        KeyError: a statistic is not known, or it needs a sum that the rows do not hold.

    Examples:
        >>> values = statistics(summarize(torch.tensor([[0.0, -4.0], [0.0, 0.0]])))
        >>> {name: round(value.item(), 3) for name, value in values.items()}
        {'mean': -1.0, 'std': 1.732, 'rms': 2.0, 'min': -4.0, 'max': 0.0, 'abs_max': 4.0, 'token_norm_mean': 2.0, \
'token_norm_max': 4.0, 'zero_share': 0.75, 'kurtosis': -0.667, 'nonfinite_count': 0.0, 'nonfinite_batch': nan}
    """
    check_rows(rows, sums)
    held = dict(zip(FIELDS, rows[..., : Row.BINS].unbind(-1), strict=True))
    held |= {one.name: rows[..., place] for place, one in enumerate(sums, ROW_SIZE)}
    values, seen = {}, held["count"] > 0
    for name in names:
        one = statistic(name)
        if one.value is not None:
            value = one.value(held)
            values[name] = torch.where(seen, value, math.nan) if one.nan_of_nothing else value
    return values


def channel_rms(row: Tensor, channels: Tensor) -> Tensor:
    """Return the root mean square of each channel over the tokens, ``(D,)``.

    Args:
        row: ``(ROW_SIZE + S,)``.
        channels: ``(2, D)``, see `Summary`.
    """
    return (channels[0] / row[Row.TOKENS]).sqrt()


@torch.no_grad()
def channel_statistics(row: Tensor, channels: Tensor, dead_threshold: float = 0.0) -> dict[str, float]:
    """Read the statistics of one layer's channels.

    This waits for the device: bring all layers to the host at once, then call it on each.

    Args:
        row: ``(ROW_SIZE + S,)``.
        channels: ``(2, D)``, see `Summary`.
        dead_threshold: a channel is dead when none of its absolute values is above this.

    Returns:
        ``dead_share`` and ``outlier_ratio``; nan where nothing was seen, or where the number of channels changed.
        The ratio is ``inf`` where most channels are always zero, and nan where all are.

    Examples:
        >>> summary = measure(torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, -6.0]]))
        >>> values = channel_statistics(summary.row, summary.channels)
        >>> {name: round(value, 3) for name, value in values.items()}
        {'dead_share': 0.333, 'outlier_ratio': 4.472}
    """
    numbers, (squares, peaks) = row.numpy(force=True), channels.numpy(force=True)
    width = len(squares)
    if not width or numbers[Row.MIXED] or not numbers[Row.COUNT]:
        return {"dead_share": math.nan, "outlier_ratio": math.nan}
    middle = [(width - 1) // 2, width // 2]
    with np.errstate(all="ignore"):
        # In numpy: torch sorts a few hundred numbers in several times the time.
        ordered = np.partition(np.sqrt(squares / numbers[Row.TOKENS]), [*middle, width - 1])
        ratio = ordered[-1] / (ordered[middle].sum() / 2)
    return {"dead_share": float(np.mean(peaks <= dead_threshold)), "outlier_ratio": float(ratio)}


def histogram(row: Tensor) -> Histogram:
    """Read the histogram of one row.

    This copies the row to the host: bring all layers over at once, then call it on each.

    Args:
        row: ``(ROW_SIZE,)``, or longer: the histogram needs no further sums.

    Returns:
        The counts between `EDGES`, with ``sum = n * mean`` and ``sum_squares = M2 + n * mean**2``. Minimum and maximum
        are 0.0 when nothing was seen, and may lie outside the outermost edges.

    Raises:
        ValueError: ``row`` is not one row.

    Examples:
        >>> values = histogram(summarize(torch.tensor([1.0, -3.0])))
        >>> values.minimum, values.maximum, values.total, values.sum, values.sum_squares
        (-3.0, 1.0, 2.0, -2.0, 10.0)
    """
    if row.dim() != 1 or len(row) < ROW_SIZE:
        raise ValueError(f"a histogram is read from one row of at least {ROW_SIZE} numbers, not {tuple(row.shape)}")
    numbers = row.tolist()
    count, mean = numbers[Row.COUNT], numbers[Row.MEAN]
    return Histogram(
        edges=EDGES,
        counts=tuple(numbers[Row.BINS : ROW_SIZE]),
        minimum=numbers[Row.MINIMUM] if count else 0.0,
        maximum=numbers[Row.MAXIMUM] if count else 0.0,
        total=count,
        sum=count * mean,
        sum_squares=numbers[Row.M2] + count * mean**2,
    )


def histogram_of(values: Tensor) -> Histogram:
    """Return the histogram of a few numbers, for example one for each channel, between the same edges.

    Examples:
        >>> histogram_of(torch.tensor([1.0, 3.0])).sum
        4.0
    """
    return histogram(summarize(values))
