"""`measure` for what numpy can read: finite activations in the host's memory, in the calling thread.

Torch shares a hundred thousand elements among threads, and then waits longer for them than it computes; its every
small call costs microseconds, and so does fresh memory. Here a call is cheap, and some thousand elements at a time
stay in a core's own cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BITS, bins_of_exponents, count_exponents
from mi_crow_lightning.metrics.one_pass.summary import Group, Summary
from mi_crow_lightning.metrics.rows import Row, empty_rows

_CHUNK = 2**15  # elements in work at a time: torch, which counts the exponents, takes no second thread for these

_Array = NDArray[np.floating[Any]]


def is_at_hand(x: Tensor) -> bool:
    """Whether ``x`` has its numbers on the CPU: fake tensors, and those of a graph, have none."""
    return type(x) is Tensor and x.device.type == "cpu"


@np.errstate(all="ignore")
def measure_at_hand(tokens: Tensor, keep: Tensor | None, groups: Group) -> Summary | None:
    """Summarise tokens that are at hand.

    Args:
        tokens: ``(N, D)``, float32 or float64.
        keep: bool ``(N, 1)``; None for all.
        groups: what to compute.

    Returns:
        What `measure.measure` gives; None where no token is chosen, or not all of
        their elements are finite.
    """
    x: _Array = tokens.numpy(force=True)
    if keep is not None and not keep.all():
        x = x[keep.numpy()[:, 0]]
    # A finite sum has finite terms. (One in float64 that overflows may have too: they are taken another way.)
    total = x.sum(dtype=np.float64)
    if x.size == 0 or not np.isfinite(total):
        return None
    sums = _Sums(x, total / x.size, groups)
    for start in range(0, len(x), sums.step):
        sums.add(x[start : start + sums.step])
    return sums.summary(x)


class _Sums:
    """What is seen so far of an activation whose mean is known.

    Args:
        x: the activation, ``(N, D)``.
        mean: of all its elements.
        groups: what to compute.
    """

    def __init__(self, x: _Array, mean: float, groups: Group) -> None:
        width = x.shape[1]
        self.step = min(len(x), max(1, _CHUNK // width))
        self._groups, self._mean = groups, mean
        self._high, self._low = np.full(width, -np.inf), np.full(width, np.inf)
        self._zeros = 0
        self._bits = BITS[torch.from_numpy(x).dtype]
        self._exponents = torch.zeros(2, self._bits.exponents, dtype=torch.int64)  # of negative and positive elements
        self._channel_squares = np.zeros(width)
        self._norm_sum, self._norm_max = 0.0, 0.0
        self._moments = np.zeros(3)  # sums of the second, third and fourth powers of deviations from the mean
        self._wide, self._squares = np.empty((2, self.step, width))

    def add(self, x: _Array) -> None:
        """Add the next ``step`` tokens, or the rest."""
        groups = self._groups
        if groups & (Group.EXTREMES | Group.CHANNELS):
            self._high, self._low = np.maximum(self._high, x.max(0)), np.minimum(self._low, x.min(0))
        if Group.EXTREMES in groups:
            self._zeros += int(np.count_nonzero(x == 0))
        if Group.BINS in groups:
            self._exponents += count_exponents(torch.from_numpy(x))
        if groups & (Group.MOMENTS | Group.TOKENS | Group.CHANNELS):
            self._add_powers(x)

    def _add_powers(self, x: _Array) -> None:
        wide, squares = self._wide[: len(x)], self._squares[: len(x)]
        wide[:] = x
        np.multiply(wide, wide, out=squares)
        if Group.TOKENS in self._groups:
            norms = np.sqrt(squares.sum(1))
            self._norm_sum, self._norm_max = self._norm_sum + norms.sum(), max(self._norm_max, norms.max())
        if Group.CHANNELS in self._groups:
            self._channel_squares += squares.sum(0)
        if Group.MOMENTS in self._groups:
            wide -= self._mean
            np.multiply(wide, wide, out=squares)
            # Not by a dot product: BLAS would ask for threads.
            cubes, fourths = np.einsum("nd,nd->", squares, wide), np.einsum("nd,nd->", squares, squares)
            self._moments += (squares.sum(), cubes, fourths)

    def summary(self, x: _Array) -> Summary:
        """All that was seen of ``x``."""
        row = empty_rows(1)[0]
        at = row.numpy()
        at[Row.COUNT], at[Row.TOKENS] = x.size, len(x)
        if Group.MOMENTS in self._groups:
            at[Row.MEAN], at[Row.M2 : Row.M4 + 1] = self._mean, self._moments
        if Group.EXTREMES in self._groups:
            at[Row.MINIMUM], at[Row.MAXIMUM], at[Row.ZEROS] = self._low.min(), self._high.max(), self._zeros
        if Group.TOKENS in self._groups:
            at[Row.NORM_SUM], at[Row.NORM_MAX] = self._norm_sum, self._norm_max
        if Group.BINS in self._groups:
            row[Row.BINS :] = bins_of_exponents(self._exponents, self._bits)
        if Group.CHANNELS not in self._groups:
            return Summary(row, row.new_zeros(2, 0))
        at[Row.CHANNELS] = x.shape[1]
        return Summary(row, torch.from_numpy(np.stack([self._channel_squares, np.maximum(self._high, -self._low)])))
