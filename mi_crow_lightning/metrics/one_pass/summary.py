"""What is computed of an activation, and what is kept of it."""

from __future__ import annotations

from enum import Flag, auto
from typing import NamedTuple

from torch import Tensor


class Group(Flag):
    """Statistics that are computed together; what is in no chosen group is not computed."""

    COUNTS = 0  # elements, non-finite elements, tokens: always
    MOMENTS = auto()  # mean, M2, M3, M4
    EXTREMES = auto()  # minimum, maximum, zeros
    TOKENS = auto()  # token norms
    CHANNELS = auto()  # the channel part
    BINS = auto()  # the histogram's counts
    ALL = MOMENTS | EXTREMES | TOKENS | CHANNELS | BINS


class Summary(NamedTuple):
    """What is kept of an activation, or of a part of one.

    Attributes:
        row: ``(ROW_SIZE,)``, see `Row`.
        channels: ``(2, D)``, of each channel the sum of squares and the largest absolute value; ``(2, 0)``
            when the channels were not asked for.
    """

    row: Tensor
    channels: Tensor
