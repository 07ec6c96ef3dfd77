"""The form for what numpy can read: finite activations in the host's memory, in the calling thread.

Torch shares a hundred thousand elements among threads, and then waits for the threads longer than it computes. Each of
its small calls costs microseconds, and so does fresh memory. Here calls are cheap, and a few thousand elements at a
time stay in a core's own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BITS, bins_of_exponents, count_exponents
from mi_crow_lightning.metrics.one_pass.in_torch import declared_sums
from mi_crow_lightning.metrics.rows import Row, empty_rows
from mi_crow_lightning.metrics.summary import Group, Summary

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum

_CHUNK = 2**15  # elements at a time: torch, which counts the exponents, takes no second thread for so few

_Array = NDArray[np.floating[Any]]

SUMS: dict[str, Callable[[_Array], float]] = {}
"""By its name how numpy measures a further sum, from ``(N, D)``, float32 or float64: tokens that count, all finite. Ask
for ``dtype=np.float64`` where it adds. A sum that is not here is measured by torch, as it is declared."""


def is_at_hand(x: Tensor) -> bool:
    """Return whether ``x`` has its numbers on the CPU: fake tensors, and those of a graph, have none."""
    return type(x) is Tensor and x.device.type == "cpu"


@np.errstate(all="ignore")
def measure_at_hand(tokens: Tensor, keep: Tensor | None, groups: Group, sums: Sequence[Sum] = ()) -> Summary | None:
    """Summarise tokens that are at hand.

    Args:
        tokens: ``(N, D)``, float32 or float64.
        keep: bool ``(N, 1)``; None for all.
        groups: what to compute.
        sums: the further sums.

    Returns:
        The summary; None where no token is chosen, or not all of their elements are finite.
    """
    x: _Array = tokens.numpy(force=True)
    if keep is not None and not keep.all():
        x = x[keep.numpy()[:, 0]]
    # A finite sum has finite terms. (So may a float64 sum that overflows: eager torch measures those.)
    total = x.sum(dtype=np.float64)
    if x.size == 0 or not np.isfinite(total):
        return None
    seen = _Seen(x, total / x.size, groups, [one.name for one in sums if one.name in SUMS])
    for start in range(0, len(x), seen.step):
        seen.add(x[start : start + seen.step])
    summary = seen.summary(x)
    return Summary(torch.cat([summary.row, _further(x, sums, seen.parts)]), summary.channels) if sums else summary


def _further(x: _Array, sums: Sequence[Sum], parts: dict[str, list[float]]) -> Tensor:
    """Return the further sums ``(S,)``: from numpy's chunks, or from ``x`` where numpy does not know the sum."""
    of_chunks = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in parts.items()}
    found = {one.name: one.merge.join(of_chunks[one.name]) for one in sums if one.name in of_chunks}
    if rest := [one for one in sums if one.name not in found]:
        numbers = declared_sums(torch.from_numpy(x), torch.ones(x.shape, dtype=torch.bool), rest)
        found |= {one.name: number for one, number in zip(rest, numbers, strict=True)}
    return torch.stack([found[one.name] for one in sums])


class _Seen:
    """The sums so far of an activation whose mean is known.

    Args:
        x: the activation, ``(N, D)``.
        mean: the mean of all its elements.
        groups: what to compute.
        sums: the names of the further sums, all in `SUMS`.
    """

    def __init__(self, x: _Array, mean: float, groups: Group, sums: Sequence[str]) -> None:
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
        self.parts: dict[str, list[float]] = {name: [] for name in sums}  # of each chunk

    def add(self, x: _Array) -> None:
        """Add the next ``step`` tokens, or those that are left."""
        groups = self._groups
        if groups & (Group.EXTREMES | Group.CHANNELS):
            self._high, self._low = np.maximum(self._high, x.max(0)), np.minimum(self._low, x.min(0))
        if Group.EXTREMES in groups:
            self._zeros += int(np.count_nonzero(x == 0))
        if Group.BINS in groups:
            self._exponents += count_exponents(torch.from_numpy(x))
        if groups & (Group.MOMENTS | Group.TOKENS | Group.CHANNELS):
            self._add_powers(x)
        for name, parts in self.parts.items():
            parts.append(float(SUMS[name](_read_only(x))))

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
        """Return all that was seen of ``x``, without further sums."""
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


def _read_only(x: _Array) -> _Array:
    """Return a view that refuses writes: the numbers may be the model's own."""
    view = x.view()
    view.flags.writeable = False
    return view
