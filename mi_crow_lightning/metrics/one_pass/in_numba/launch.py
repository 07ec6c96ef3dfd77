"""Calling the compiled look on tensors: in one call, or in parts that some threads share.

What the parts are depends on the activation's shape alone, and they are joined in order: so the numbers do not depend
on how many threads there are. The threads live as long as the call. (numba's own are not used: they kill a forked
process, and two threads must not start them at once.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.buffers import Numbers
from mi_crow_lightning.metrics.rows import ROW_SIZE, empty_rows, merge_all
from mi_crow_lightning.metrics.summary import Group

_INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_EVERYTHING = np.empty((0, 0), dtype=bool)
_PART = 2**20  # elements: about a millisecond, ten times as long as a thread takes to start
_MOST_PARTS = 16
_BY_CHANNEL = Group.CHANNELS.value

_Look = Callable[..., None]


def launch(look: _Look, tokens: Tensor, keep: Tensor | None, groups: Group, to: Numbers, batch: int | None) -> None:
    """Add an activation to the numbers of a layer.

    Args:
        look: the compiled function.
        tokens: ``(N, D)`` of one of the dtypes above; neither is 0.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        to: where to add; with channels, it has room for ``D``.
        batch: the batch's index; None if it is not known.
    """
    kinds, bits = groups.value, _bits(tokens)
    kept = _EVERYTHING if keep is None else keep.contiguous().numpy()
    if kinds & _BY_CHANNEL and not len(to.sums) == len(to.peaks) == bits.shape[1]:  # the compiled code checks nothing
        raise ValueError(f"there is room for {len(to.sums)} channels, not for {bits.shape[1]}")
    half, number = tokens.dtype is torch.float16, math.inf if batch is None else float(batch)
    parts = min(len(bits), _MOST_PARTS, bits.size // _PART)
    if parts < 2:
        look(bits, half, kept, kinds, number, *to)
        return

    def add(part: slice, numbers: Numbers) -> None:
        look(bits[part], half, kept[part], kinds, number, *numbers)

    _add_parts(add, len(bits), parts, to)


def _bits(tokens: Tensor) -> Any:
    bits = tokens.contiguous().view(_INTEGERS[tokens.dtype]).numpy()
    return bits if bits.flags.aligned else bits.copy()


def _add_parts(add: Callable[[slice, Numbers], None], count: int, parts: int, to: Numbers) -> None:
    """Add parts of ``count`` tokens, each to separate numbers, and join them."""
    edges = [count * part // parts for part in range(parts + 1)]
    rows, (sums, peaks) = empty_rows(parts, "cpu"), np.zeros((2, parts, len(to.sums)))
    numbers = map(Numbers, rows.numpy(), sums, peaks)
    jobs = list(zip(map(slice, edges, edges[1:]), numbers, strict=True))

    def work(mine: list[tuple[slice, Numbers]]) -> None:
        for part, numbers in mine:
            add(part, numbers)

    workers = min(parts, torch.get_num_threads())
    if workers == 1:
        work(jobs)
    else:
        with ThreadPoolExecutor(workers - 1) as pool:
            others = [pool.submit(work, jobs[worker::workers]) for worker in range(1, workers)]
            work(jobs[::workers])
        for other in others:
            other.result()
    row = to.row[:ROW_SIZE]
    row[:] = merge_all(torch.cat([torch.from_numpy(row)[None], rows])).numpy()
    to.sums[:] += sums.sum(0)
    np.maximum(to.peaks, peaks.max(0), out=to.peaks)
