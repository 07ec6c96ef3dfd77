"""The statistics that are known by name: the built-in ones, each declared in a line, and those that were registered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor

from mi_crow_lightning.choices import OwnStatistic, StatisticName
from mi_crow_lightning.metrics.descriptions import statistic_text
from mi_crow_lightning.metrics.rows import Row
from mi_crow_lightning.metrics.statistic import Statistic, Sum
from mi_crow_lightning.metrics.summary import Group

__all__ = ["FIELDS", "SHOWN", "STATISTICS", "described", "groups_of", "known_names", "register", "statistic", "sums_of"]

_Sums = Mapping[str, Tensor]


def _variance(s: _Sums) -> Tensor:
    return s["m2"] / s["count"]


def _rms(s: _Sums) -> Tensor:
    return (s["mean"].square() + _variance(s)).sqrt()


def _abs_max(s: _Sums) -> Tensor:
    return torch.maximum(s["minimum"].abs(), s["maximum"].abs())


def _kurtosis(s: _Sums) -> Tensor:
    return s["m4"] / s["count"] / _variance(s).square() - 3


def _nonfinite_batch(s: _Sums) -> Tensor:
    return torch.where(s["bad_batch"].isinf(), math.nan, s["bad_batch"])


# What each says about a layer is in descriptions.py and docs/reference/statistics.md.
_BUILT_IN = (
    Statistic("mean", lambda s: s["mean"], Group.MOMENTS),
    Statistic("std", lambda s: _variance(s).sqrt(), Group.MOMENTS),
    Statistic("rms", _rms, Group.MOMENTS),
    Statistic("min", lambda s: s["minimum"], Group.EXTREMES),
    Statistic("max", lambda s: s["maximum"], Group.EXTREMES),
    Statistic("abs_max", _abs_max, Group.EXTREMES),
    Statistic("token_norm_mean", lambda s: s["norm_sum"] / s["tokens"], Group.TOKENS),
    Statistic("token_norm_max", lambda s: s["norm_max"], Group.TOKENS),
    Statistic("zero_share", lambda s: s["zeros"] / s["count"], Group.EXTREMES),
    Statistic("dead_share", None, Group.CHANNELS),
    Statistic("kurtosis", _kurtosis, Group.MOMENTS),
    Statistic("outlier_ratio", None, Group.CHANNELS),
    Statistic("nonfinite_count", lambda s: s["nonfinite"].clone(), nan_of_nothing=False),
    Statistic("nonfinite_batch", _nonfinite_batch, nan_of_nothing=False),
)
STATISTICS: tuple[StatisticName, ...] = get_args(StatisticName)
"""The names of the built-in statistics: those that are measured where none is chosen."""

SHOWN: tuple[StatisticName, ...] = ("mean", "std", "rms", "abs_max", "token_norm_mean", "dead_share", "nonfinite_count")
"""The names of those that loggers show where all are measured."""

_HISTOGRAMS = ("histogram", "channel_rms")  # the other readings of the same detector
FIELDS = tuple(field.name.lower() for field in Row if field < Row.BINS)
"""The names under which `Statistic.value` finds the built-in sums, in the order of a row."""

_known: dict[str, Statistic] = {one.name: one for one in _BUILT_IN}


def register(new: Statistic) -> OwnStatistic:
    """Make a statistic known by its name, so that ``ActivationStatistics(statistics=[...])`` takes it.

    Register it where your module is imported: then every process of a run knows it. A statistic registered again,
    as when a notebook's cell runs twice, replaces the earlier one. It is measured only where it is asked for by name.

    Args:
        new: the statistic.

    Returns:
        Its name, as a type that type checkers take where the name of a built-in statistic could stand.

    Raises:
        ValueError: its name, or the name of one of its sums, already means something else.

    Examples:
        >>> mean_of_squares = register(
        ...     Statistic("mean_of_squares", lambda s: s["mean"] ** 2 + s["m2"] / s["count"], Group.MOMENTS)
        ... )
        >>> from mi_crow_lightning.metrics import measure, statistics
        >>> statistics(measure(torch.tensor([1.0, 3.0])).row, names=[mean_of_squares])
        {'mean_of_squares': tensor(5., dtype=torch.float64)}
    """
    if new.name in STATISTICS or new.name in _HISTOGRAMS:
        raise ValueError(f"a built-in reading is named {new.name!r}: give the statistic another name")
    for one in new.sums:
        if one.name in (*FIELDS, "bins"):
            raise ValueError(f"a built-in sum is named {one.name!r}: give the sum of {new.name!r} another name")
    _distinct([*_BUILT_IN, new])
    _known[new.name] = new
    return OwnStatistic(new.name)


def known_names() -> tuple[str, ...]:
    """Return the names of all statistics: the built-in ones, then those that were registered."""
    return tuple(_known)


def statistic(name: str) -> Statistic:
    """Return the statistic of this name.

    Raises:
        KeyError: no statistic has it in this process.
    """
    if name not in _known:
        raise KeyError(f"no statistic {name!r} is known in this process: register it where its module is imported")
    return _known[name]


def described(name: str) -> str:
    """Return what loggers say of a statistic or histogram, as markdown; empty if nothing is known of it."""
    return statistic_text(name, _known[name].description if name in _known else None)


def groups_of(names: Iterable[str], histogram: bool = False, channels: bool = False) -> Group:
    """Return the groups of built-in sums that statistics need.

    Args:
        names: the statistics.
        histogram: whether the histogram is read too; it shows minimum, maximum and the first two moments.
        channels: whether numbers of each channel are read.

    Examples:
        >>> groups_of(["mean", "token_norm_max"]) == Group.MOMENTS | Group.TOKENS
        True
    """
    groups = Group.CHANNELS if channels else Group.COUNTS
    if histogram:
        groups |= Group.BINS | Group.MOMENTS | Group.EXTREMES
    for name in names:
        groups |= statistic(name).groups
    return groups


def sums_of(names: Iterable[str]) -> tuple[Sum, ...]:
    """Return the sums that statistics need beyond the built-in ones, each once.

    Examples:
        >>> sums_of(STATISTICS)
        ()
    """
    return _distinct([statistic(name) for name in names])


def _distinct(statistics: Iterable[Statistic]) -> tuple[Sum, ...]:
    found: dict[str, Sum] = {}
    for each in statistics:
        for one in each.sums:
            if found.setdefault(one.name, one) != one:
                raise ValueError(
                    f"statistic {each.name!r} has a sum {one.name!r}, and another statistic has a different sum of "
                    "that name: use the same Sum in both, or give one of them another name"
                )
    return tuple(found.values())
