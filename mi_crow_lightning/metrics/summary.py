"""The groups of numbers that can be computed for an activation, and the summary that is kept."""

from __future__ import annotations

from enum import Flag, auto
from typing import NamedTuple

from torch import Tensor


class Group(Flag):
    """Sums that are computed together; a group that is not chosen is not computed."""

    COUNTS = 0  # elements, non-finite elements, tokens: always
    MOMENTS = auto()  # mean, M2, M3, M4
    EXTREMES = auto()  # minimum, maximum, zeros
    TOKENS = auto()  # token norms
    CHANNELS = auto()  # the channel part
    BINS = auto()  # the histogram's counts
    ALL = MOMENTS | EXTREMES | TOKENS | CHANNELS | BINS


class Summary(NamedTuple):
    """The numbers that are kept of an activation, or of a part of one.

    Attributes:
        row: ``(ROW_SIZE + S,)``, see `Row`; ``S`` further sums stand at its end.
        channels: ``(2, D)``, the sum of squares and the largest absolute value of each channel; ``(2, 0)``
            when the channels were not asked for.
    """

    row: Tensor
    channels: Tensor
