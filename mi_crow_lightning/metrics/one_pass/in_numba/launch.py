"""Calling the compiled look on tensors: in one call, or in parts that some threads share.

What the parts are depends on the activation's shape alone, and they are joined in order: so the numbers do not depend
on how many threads there are. The threads live as long as the call. (numba's own are not used: they kill a forked
process, and two threads must not start them at once.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.buffers import Start, empty_buffer, place_at, split, starts_of
from mi_crow_lightning.metrics.one_pass.in_numba.elements import Elements
from mi_crow_lightning.metrics.rows import merge_all
from mi_crow_lightning.metrics.summary import Group

# The numbers by which the look knows them, and their bytes.
_KINDS = {torch.bfloat16: (0, 2), torch.float16: (1, 2), torch.float32: (2, 4), torch.float64: (3, 8)}
_PART = 2**20  # elements: about a millisecond, ten times as long as a thread takes to start
_MOST_PARTS = 16
_BY_CHANNEL = Group.CHANNELS.value

_Look = Callable[..., None]
_Add = Callable[[int, int, Tensor, Start], None]


def launch(
    look: _Look, elements: Elements, groups: int, buffer: Tensor, start: Start, batch: int | None = None
) -> None:
    """Add an activation to the numbers of a layer.

    Args:
        look: the compiled function.
        elements: the activation and its mask.
        groups: what to compute, the value of a `Group`.
        buffer: where to add, on the CPU.
        start: where the layer's numbers begin in it; with channels, it has room for ``D``.
        batch: the batch's index; None if it is not known.
    """
    x, mask, count, width, columns = elements
    number = math.inf if batch is None else float(batch)
    if groups & _BY_CHANNEL and start.width != width:  # the compiled code checks nothing
        raise ValueError(f"there is room for {start.width} channels, not for {width}")
    kind, size = _KINDS[x.dtype]
    first, mask_first = x.data_ptr(), 0 if mask is None else mask.data_ptr()

    def add(token: int, past: int, buffer: Tensor, start: Start) -> None:
        numbers, (row, sums, peaks, _) = buffer.data_ptr(), start
        tokens, kept = first + token * width * size, mask_first + token * columns
        to = numbers + 8 * row, numbers + 8 * sums, numbers + 8 * peaks  # float64
        look(tokens, kind, past - token, width, kept, columns, groups, number, *to)

    parts = min(count, _MOST_PARTS, count * width // _PART)
    if parts < 2:
        add(0, count, buffer, start)
    else:
        _add_parts(add, count, parts, buffer, start)


def _add_parts(add: _Add, count: int, parts: int, buffer: Tensor, start: Start) -> None:
    """Add parts of ``count`` tokens, each to separate numbers, and join them."""
    edges = [count * part // parts for part in range(parts + 1)]
    widths = [start.width] * parts
    of_parts = empty_buffer(widths, "cpu")
    jobs = list(zip(edges, edges[1:], starts_of(widths), strict=False))

    def work(mine: list[tuple[int, int, Start]]) -> None:
        for token, past, place in mine:
            add(token, past, of_parts, place)

    workers = min(parts, torch.get_num_threads())
    if workers == 1:
        work(jobs)
    else:
        with ThreadPoolExecutor(workers - 1) as pool:
            others = [pool.submit(work, jobs[worker::workers]) for worker in range(1, workers)]
            work(jobs[::workers])
        for other in others:
            other.result()
    rows, channels = split(of_parts, parts)
    row, sums, peaks = (part.numpy() for part in place_at(buffer, start))
    row[:] = merge_all(torch.cat([torch.from_numpy(row)[None], rows])).numpy()
    of_sums, of_peaks = channels.numpy().reshape(2, parts, -1)
    sums += of_sums.sum(0)
    np.maximum(peaks, of_peaks.max(0), out=peaks)
