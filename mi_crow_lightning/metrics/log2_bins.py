"""Counting elements in fixed, symmetric, logarithmic bins, on the device and without a synchronisation.

The bins are the same for every layer, step and rank, so counts add up. Each edge is a power of two, so an element's
bin is its sign and its exponent, read from its bits: no logarithm rounds ``8.0`` into the wrong bin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MIN_EXPONENT = -18
MAX_EXPONENT = 13
_SIDE = MAX_EXPONENT - MIN_EXPONENT + 1  # bins on each side of the centre bin
BINS = 2 * _SIDE + 1
CENTRE = _SIDE

_POWERS = tuple(2.0**e for e in range(MIN_EXPONENT, MAX_EXPONENT + 2))
EDGES: tuple[float, ...] = tuple(-p for p in reversed(_POWERS)) + _POWERS
"""The 66 ascending edges of the 65 bins, ``-2**14 ... -2**-18, 2**-18 ... 2**14``."""


class Bits(NamedTuple):
    """The place of the exponent in an IEEE 754 format."""

    integer: torch.dtype  # of the same width
    mantissa: int  # bits below the exponent
    exponents: int  # number of exponents
    bias: int


# float16 is absent: its subnormal numbers reach into the bins, so it is widened first.
BITS = {
    torch.bfloat16: Bits(torch.int16, 7, 256, 127),
    torch.float32: Bits(torch.int32, 23, 256, 127),
    torch.float64: Bits(torch.int64, 52, 2048, 1023),
}
_LANE_COUNTERS = 2**19


def count_bins(x: Tensor) -> Tensor:
    """Count the elements of ``x`` in 65 bins that are symmetric about zero.

    Bin ``CENTRE + 1 + (e - MIN_EXPONENT)`` holds ``2**e <= x < 2**(e + 1)``, and its mirror image the same for ``-x``.
    Elements smaller than ``2**-18``, and zeros, are in the centre bin; elements from ``2**14`` on are in the outermost
    bin.

    Args:
        x: finite elements of any shape and floating-point dtype.

    Returns:
        ``(65,)`` float64, the number of elements in each bin.

    Examples:
        >>> counts = count_bins(torch.tensor([0.0, 1.0, 1.5, -1.0, 1e9]))
        >>> [(EDGES[i], EDGES[i + 1], int(counts[i])) for i in counts.nonzero().flatten()]
        [(-2.0, -1.0, 1), (-3.814697265625e-06, 3.814697265625e-06, 1), (1.0, 2.0, 2), (8192.0, 16384.0, 1)]
    """
    x = x if x.dtype in BITS else x.float()
    return bins_of_exponents(count_exponents(x), BITS[x.dtype])


def count_exponents(x: Tensor) -> Tensor:
    """Count the elements of ``x``, of a dtype in `BITS`, by exponent: ``(2, exponents)``, negative elements first."""
    bits = BITS[x.dtype]
    # An arithmetic shift leaves the exponent, less `exponents` where the sign bit is set.
    keys = (x.contiguous().view(bits.integer) >> bits.mantissa).flatten().add_(bits.exponents)
    return _count_keys(keys, 2 * bits.exponents).view(2, bits.exponents)


def bins_of_exponents(counts: Tensor, bits: Bits) -> Tensor:
    """Return the 65 bins of `count_bins` from the counts of `count_exponents`."""
    low, high = bits.bias + MIN_EXPONENT, bits.bias + MAX_EXPONENT
    small = counts[:, :low].sum()
    negative, positive = torch.cat([counts[:, low:high], counts[:, high:].sum(1, keepdim=True)], dim=1)  # (32,) each
    return torch.cat([negative.flip(0), small[None], positive]).double()


def _count_keys(keys: Tensor, size: int) -> Tensor:
    # This is fastest on the CPU; elsewhere bincount asks for the largest key, which is a synchronisation.
    return torch.bincount(keys, minlength=size) if keys.device.type == "cpu" else _count_in_lanes(keys, size)


def _count_in_lanes(keys: Tensor, size: int) -> Tensor:
    """Count keys by atomic additions."""
    # Few exponents are in use: with one counter for each, all threads would queue for the same addresses.
    lanes = _LANE_COUNTERS // size
    lane = torch.arange(keys.numel(), device=keys.device) % lanes
    counters = torch.zeros(lanes * size, dtype=torch.int32, device=keys.device)
    one = torch.ones((), dtype=torch.int32, device=keys.device).expand(keys.numel())
    return counters.scatter_add_(0, lane * size + keys, one).view(lanes, size).sum(0)
