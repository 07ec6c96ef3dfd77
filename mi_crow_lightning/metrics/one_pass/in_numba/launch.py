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

from mi_crow_lightning.metrics.one_pass.buffers import Place
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

_Look = Callable[..., None]


def launch(look: _Look, tokens: Tensor, keep: Tensor | None, groups: Group, to: Place, batch: int | None) -> None:
    """Add an activation to a place.

    Args:
        look: the compiled function.
        tokens: ``(N, D)`` of one of the dtypes above; neither is 0.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        to: where to add; with channels, it has room for ``D``.
        batch: the batch's index; None if it is not known.
    """
    if Group.CHANNELS in groups and not len(to.sums) == len(to.peaks) == tokens.shape[1]:
        raise ValueError(f"there is room for {len(to.sums)} channels, not for {tokens.shape[1]}")
    bits, kept = _bits(tokens), _EVERYTHING if keep is None else keep.contiguous().numpy()
    half, number = tokens.dtype == torch.float16, math.inf if batch is None else float(batch)

    def add(part: slice, place: Place) -> None:
        look(bits[part], half, kept[part], groups.value, number, *(numbers.numpy() for numbers in place))

    parts = min(len(bits), _MOST_PARTS, bits.size // _PART)
    if parts < 2:
        add(slice(None), to)
    else:
        _add_parts(add, len(bits), parts, groups, to)


def _bits(tokens: Tensor) -> Any:
    bits = tokens.contiguous().view(_INTEGERS[tokens.dtype]).numpy()
    return bits if bits.flags.aligned else bits.copy()


def _add_parts(add: Callable[[slice, Place], None], count: int, parts: int, groups: Group, to: Place) -> None:
    """Add parts of ``count`` tokens, each to a separate place, and join them."""
    edges = [count * part // parts for part in range(parts + 1)]
    width = len(to.sums) if Group.CHANNELS in groups else 0
    rows, channels = empty_rows(parts, "cpu"), torch.zeros(2, parts, width, dtype=torch.float64)
    jobs = [
        (slice(first, past), Place(*place))
        for first, past, *place in zip(edges, edges[1:], rows, *channels, strict=False)
    ]

    def work(mine: list[tuple[slice, Place]]) -> None:
        for part, place in mine:
            add(part, place)

    workers = min(parts, torch.get_num_threads())
    if workers == 1:
        work(jobs)
    else:
        with ThreadPoolExecutor(workers - 1) as pool:
            others = [pool.submit(work, jobs[worker::workers]) for worker in range(1, workers)]
            work(jobs[::workers])
        for other in others:
            other.result()
    to.row[:ROW_SIZE].copy_(merge_all(torch.cat([to.row[None, :ROW_SIZE], rows])))
    if width:
        to.sums.add_(channels[0].sum(0))
        torch.maximum(to.peaks, channels[1].amax(0), out=to.peaks)
