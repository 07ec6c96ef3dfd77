"""The statistics of activations: their names, their formulas, and how they are read from a summary.

Over the ``n`` finite elements ``x`` of the tokens that count, in ``N`` tokens of ``D`` channels:

==================  =============================================  ==================
name                formula                                        unit
==================  =============================================  ==================
mean                sum(x) / n                                     the activations'
std                 sqrt(M2 / n), M2 = sum((x - mean)**2)          the activations'
rms                 sqrt(sum(x**2) / n) = sqrt(mean**2 + std**2)   the activations'
min, max            smallest, largest x                            the activations'
abs_max             largest abs(x)                                 the activations'
token_norm_mean     sum over tokens of sqrt(sum(x**2)) / N         the activations'
token_norm_max      largest sqrt(sum(x**2)) of a token             the activations'
zero_share          number of x == 0 / n                           0 to 1
dead_share          channels where all abs(x) <= threshold / D     0 to 1
kurtosis            n * sum((x - mean)**4) / M2**2 - 3             none; normal: 0
outlier_ratio       max over channels of r / median of r,          none; at least 1
                    r = sqrt(sum(x**2) / N) of a channel
nonfinite_count     number of nan and infinite elements            elements
nonfinite_batch     first batch that held one                      batch index
==================  =============================================  ==================

Each is one number a layer. The moments and their merging are in ``rows.py`` (sources there); what each tells
a reader is in the documentation, ``docs/reference/statistics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mi_crow_lightning.metrics.histogram import Histogram
from mi_crow_lightning.metrics.log2_bins import EDGES
from mi_crow_lightning.metrics.one_pass.measure import measure, summarize
from mi_crow_lightning.metrics.one_pass.summary import Group, Summary
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, check_rows, empty_rows, merge, merge_all

__all__ = [
    "EDGES",
    "ROW_SIZE",
    "STATISTICS",
    "Group",
    "Row",
    "Summary",
    "channel_rms",
    "channel_statistics",
    "empty_rows",
    "groups_of",
    "histogram",
    "histogram_of",
    "measure",
    "merge",
    "merge_all",
    "statistics",
    "summarize",
]

_GROUPS = {
    "mean": Group.MOMENTS,
    "std": Group.MOMENTS,
    "rms": Group.MOMENTS,
    "min": Group.EXTREMES,
    "max": Group.EXTREMES,
    "abs_max": Group.EXTREMES,
    "token_norm_mean": Group.TOKENS,
    "token_norm_max": Group.TOKENS,
    "zero_share": Group.EXTREMES,
    "dead_share": Group.CHANNELS,
    "kurtosis": Group.MOMENTS,
    "outlier_ratio": Group.CHANNELS,
    "nonfinite_count": Group.COUNTS,
    "nonfinite_batch": Group.COUNTS,
}
STATISTICS: tuple[str, ...] = tuple(_GROUPS)
"""The names of all statistics."""


def groups_of(names: Iterable[str], histogram: bool = False, channels: bool = False) -> Group:
    """Tell what has to be computed.

    Args:
        names: of `STATISTICS`.
        histogram: whether the histogram is read too; it gives minimum, maximum and the first two moments.
        channels: whether numbers of each channel are read.

    Examples:
        >>> groups_of(["mean", "token_norm_max"]) == Group.MOMENTS | Group.TOKENS
        True
    """
    groups = Group.CHANNELS if channels else Group.COUNTS
    if histogram:
        groups |= Group.BINS | Group.MOMENTS | Group.EXTREMES
    for name in names:
        groups |= _GROUPS[name]
    return groups


@torch.no_grad()
def statistics(rows: Tensor) -> dict[str, Tensor]:
    """Read the statistics that rows hold: all but those of channels.

    Args:
        rows: ``(..., ROW_SIZE)``, for example ``(L, ROW_SIZE)``.

    Returns:
        Name -> ``(...)`` float64; nan where nothing finite was seen, but for ``nonfinite_count``, and for
        ``nonfinite_batch``, which is nan where there was none. ``kurtosis`` is nan where all elements are
        equal.

    Raises:
        ValueError: the last dimension is not ``ROW_SIZE``.

    Examples:
        >>> values = statistics(summarize(torch.tensor([[0.0, -4.0], [0.0, 0.0]])))
        >>> {name: round(value.item(), 3) for name, value in values.items()}
        {'mean': -1.0, 'std': 1.732, 'rms': 2.0, 'min': -4.0, 'max': 0.0, 'abs_max': 4.0, 'token_norm_mean': 2.0, \
'token_norm_max': 4.0, 'zero_share': 0.75, 'kurtosis': -0.667, 'nonfinite_count': 0.0, 'nonfinite_batch': nan}
    """
    check_rows(rows)
    field = dict(zip(Row, rows[..., : Row.BINS].unbind(-1), strict=False))
    count, mean, m2 = field[Row.COUNT], field[Row.MEAN], field[Row.M2]
    minimum, maximum, bad_batch = field[Row.MINIMUM], field[Row.MAXIMUM], field[Row.BAD_BATCH]
    variance = m2 / count
    seen = {
        "mean": mean,
        "std": variance.sqrt(),
        "rms": (mean.square() + variance).sqrt(),
        "min": minimum,
        "max": maximum,
        "abs_max": torch.maximum(minimum.abs(), maximum.abs()),
        "token_norm_mean": field[Row.NORM_SUM] / field[Row.TOKENS],
        "token_norm_max": field[Row.NORM_MAX],
        "zero_share": field[Row.ZEROS] / count,
        "kurtosis": field[Row.M4] / count / variance.square() - 3,
    }
    values = {name: torch.where(count > 0, value, math.nan) for name, value in seen.items()}
    values["nonfinite_count"] = field[Row.NONFINITE].clone()
    values["nonfinite_batch"] = torch.where(bad_batch.isinf(), math.nan, bad_batch)
    return values


def channel_rms(row: Tensor, channels: Tensor) -> Tensor:
    """The root mean square of each channel over the tokens, ``(D,)``.

    Args:
        row: ``(ROW_SIZE,)``.
        channels: ``(2, D)``, see `Summary`.
    """
    return (channels[0] / row[Row.TOKENS]).sqrt()


@torch.no_grad()
def channel_statistics(row: Tensor, channels: Tensor, dead_threshold: float = 0.0) -> dict[str, float]:
    """Read the statistics of one layer's channels.

    Waits for the device: bring all layers to the host at once, then call this on each.

    Args:
        row: ``(ROW_SIZE,)``.
        channels: ``(2, D)``, see `Summary`.
        dead_threshold: a channel none of whose absolute values is above this is dead.

    Returns:
        ``dead_share`` and ``outlier_ratio``; nan where nothing was seen, or where activations of different
        numbers of channels were. The ratio is ``inf`` where most channels are zero throughout, and nan where
        all are.

    Examples:
        >>> summary = measure(torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, -6.0]]))
        >>> values = channel_statistics(summary.row, summary.channels)
        >>> {name: round(value, 3) for name, value in values.items()}
        {'dead_share': 0.333, 'outlier_ratio': 4.472}
    """
    if channels.shape[1] == 0 or row[Row.MIXED] or not row[Row.COUNT]:
        return {"dead_share": math.nan, "outlier_ratio": math.nan}
    dead = channels[1] <= dead_threshold
    ordered = channel_rms(row, channels).sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {"dead_share": dead.double().mean().item(), "outlier_ratio": (ordered[-1] / median).item()}


def histogram(row: Tensor) -> Histogram:
    """Read the histogram of one row.

    Copies the row to the host: bring all layers over at once, then call this on each.

    Args:
        row: ``(ROW_SIZE,)``.

    Returns:
        The counts between `EDGES`, with ``sum = n * mean`` and ``sum_squares = M2 + n * mean**2``;
        minimum and maximum are 0.0 when nothing was seen. They may lie outside of the outermost edges.

    Raises:
        ValueError: ``row`` is not one row.

    Examples:
        >>> values = histogram(summarize(torch.tensor([1.0, -3.0])))
        >>> values.minimum, values.maximum, values.total, values.sum, values.sum_squares
        (-3.0, 1.0, 2.0, -2.0, 10.0)
    """
    if row.shape != (ROW_SIZE,):
        raise ValueError(f"a histogram is read from one row of shape ({ROW_SIZE},), not {tuple(row.shape)}")
    numbers = row.tolist()
    count, mean = numbers[Row.COUNT], numbers[Row.MEAN]
    return Histogram(
        edges=EDGES,
        counts=tuple(numbers[Row.BINS :]),
        minimum=numbers[Row.MINIMUM] if count else 0.0,
        maximum=numbers[Row.MAXIMUM] if count else 0.0,
        total=count,
        sum=count * mean,
        sum_squares=numbers[Row.M2] + count * mean**2,
    )


def histogram_of(values: Tensor) -> Histogram:
    """The histogram of a few numbers, between the same edges: for example those of the channels.

    Examples:
        >>> histogram_of(torch.tensor([1.0, 3.0])).sum
        4.0
    """
    return histogram(summarize(values))
