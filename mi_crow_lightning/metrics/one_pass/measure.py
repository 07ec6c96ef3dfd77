"""One look at an activation: everything that a reading needs of it, in the form that suits it.

What is finite and on a CPU is measured by ``on_cpu.py``, on CUDA the kernels in ``on_cuda/`` measure, and in a graph
that is being compiled ``in_graph.py`` does. Everything else is measured by eager torch, ``in_torch.py``.

Outside graphs and kernels one chunk of the activation at a time is brought into the cache, and all statistics are
taken from it there. So the activation is read from memory once, and the workspace is bounded (about 10 MB on the CPU,
200 MB on an accelerator) however large it is. Nothing waits for the device, draws random numbers or changes its
input. All sums are float64, which does not exist on MPS; there the caller moves the activation to the CPU first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.buffers import Place, empty_buffer, starts_of
from mi_crow_lightning.metrics.one_pass.in_graph import measure_traced
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.metrics.one_pass.in_numba.elements import elements_of_tokens
from mi_crow_lightning.metrics.one_pass.in_torch import measure_in_torch, sums_in_torch
from mi_crow_lightning.metrics.one_pass.on_cpu import is_at_hand, measure_at_hand
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import launched, launched_sum, suits
from mi_crow_lightning.metrics.one_pass.tokens import as_tokens
from mi_crow_lightning.metrics.rows import ROW_SIZE, empty_rows, merge_all
from mi_crow_lightning.metrics.summary import Group, Summary

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.statistic import Sum

# Elements of a chunk: about as many as the cache holds on the CPU, enough to outweigh kernel launches elsewhere.
_CHUNK_CPU = 2**18
_CHUNK_ACCELERATOR = 2**22


def summarize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the row of `measure` with all groups, ``(ROW_SIZE,)``.

    Examples:
        >>> from mi_crow_lightning.metrics.rows import Row
        >>> row = summarize(torch.tensor([[1.0, 3.0], [0.0, float("nan")]]))
        >>> row[Row.COUNT].item(), row[Row.ZEROS].item(), row[Row.NONFINITE].item()
        (3.0, 1.0, 1.0)
        >>> summarize(torch.tensor([[1.0, 3.0], [9.0, 9.0]]), torch.tensor([True, False]))[Row.MEAN].item()
        2.0
    """
    return measure(x, mask).row


@torch.no_grad()
def measure(
    x: Tensor,
    mask: Tensor | None = None,
    groups: Group = Group.ALL,
    sums: Sequence[Sum] = (),
    channels: int | None = None,
) -> Summary:
    """Summarise the selected, finite elements of an activation.

    The tokens are all dimensions but that of the channels. float64 activations beyond 1e75 overflow ``M4``; narrower
    dtypes cannot.

    Args:
        x: activations of any shape, for example ``(B, T, D)``, and any floating-point dtype. Not modified.
        mask: bool, of the shape of ``x``'s leading dimensions, for example ``(B, T)``: True where elements
            count. None selects all.
        groups: what to compute; the other numbers are those of an empty row.
        sums: the ``S`` further sums, which the row holds behind ``ROW_SIZE``.
        channels: the dimension of the channels, which the mask does not reach. ``None`` is the last, and dimension 1 of
            ``(B, C, H, W)`` unless the mask has two dimensions or more.

    Returns:
        Row and channels in float64 on ``x``'s device. Elements that are nan or infinite are counted in
        ``Row.NONFINITE``; token norms and channels take them as zeros, and all else leaves them out.

    Raises:
        TypeError: ``x`` is not floating-point, or ``mask`` is not bool.
        ValueError: ``mask`` does not have the shape of ``x``'s leading dimensions.

    Examples:
        >>> measure(torch.tensor([[3.0, -4.0], [0.0, 4.0]]), groups=Group.CHANNELS).channels
        tensor([[ 9., 32.],
                [ 3.,  4.]], dtype=torch.float64)
    """
    return measure_tokens(*as_tokens(x, mask, channels), groups, sums)


def measure_tokens(tokens: Tensor, keep: Tensor | None, groups: Group, sums: Sequence[Sum] = ()) -> Summary:
    """Summarise what `as_tokens` returned, in the form that suits it."""
    width = tokens.shape[1] if Group.CHANNELS in groups else 0
    if tokens.numel() == 0:
        row, channels = empty_rows(1, tokens.device, sums)[0], tokens.new_zeros(2, width, dtype=torch.float64)
        return Summary(row, channels)
    if torch.compiler.is_compiling():
        return measure_traced(tokens, keep, groups, sums)
    if suits(tokens, keep):
        row, channels = tokens.new_empty(ROW_SIZE, dtype=torch.float64), tokens.new_empty(2, width, dtype=torch.float64)
        if launched(tokens, keep, groups, Place(row, channels[0], channels[1])):
            return Summary(torch.cat([row, sums_after_kernels(tokens, keep, sums)]) if sums else row, channels)
    if in_numba.suits(tokens, keep):
        buffer, start = empty_buffer([width], "cpu"), starts_of([width])[0]
        in_numba.launch(elements_of_tokens(tokens, keep), groups.value, buffer, start)
        row, channels = buffer[:ROW_SIZE], buffer[ROW_SIZE:].view(2, width)
        return Summary(torch.cat([row, sums_in_chunks(tokens, keep, sums)]) if sums else row, channels)
    return _measure_chunks(tokens, keep, groups, sums)


def _measure_chunks(tokens: Tensor, keep: Tensor | None, groups: Group, sums: Sequence[Sum]) -> Summary:
    parts = [_measure_chunk(x, mask, groups, sums) for x, mask in _chunks(tokens, keep)]
    if len(parts) == 1:
        return parts[0]
    squares, peaks = torch.stack([part.channels for part in parts]).unbind(1)
    rows = torch.stack([part.row for part in parts])
    return Summary(merge_all(rows, sums), torch.stack([squares.sum(0), peaks.amax(0)]))


def sums_after_kernels(tokens: Tensor, keep: Tensor | None, sums: Sequence[Sum]) -> Tensor:
    """Return the further sums ``(S,)`` of an activation whose row the kernels made.

    A sum that has no form for Triton is measured as it is declared.
    """
    found = {one.name: number for one in sums if (number := launched_sum(tokens, keep, one)) is not None}
    if rest := [one for one in sums if one.name not in found]:
        parts = torch.stack([sums_in_torch(_wide_enough(x), mask, rest) for x, mask in _chunks(tokens, keep)])
        found |= {one.name: one.merge.join(part) for one, part in zip(rest, parts.unbind(1), strict=True)}
    return torch.stack([found[one.name] for one in sums])


def sums_in_chunks(tokens: Tensor, keep: Tensor | None, sums: Sequence[Sum]) -> Tensor:
    """Return the further sums ``(S,)`` of an activation whose row the compiled look made, which knows none of them."""
    return _measure_chunks(tokens, keep, Group.COUNTS, sums).row[ROW_SIZE:]


def _chunks(tokens: Tensor, keep: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    step = max(1, (_CHUNK_CPU if tokens.device.type == "cpu" else _CHUNK_ACCELERATOR) // tokens.shape[1])
    return zip(tokens.split(step), repeat(None) if keep is None else keep.split(step), strict=False)


def _measure_chunk(x: Tensor, mask: Tensor | None, groups: Group, sums: Sequence[Sum]) -> Summary:
    x = _wide_enough(x)
    by_token = mask is None or mask.shape[1] == 1
    if by_token and is_at_hand(x) and (summary := measure_at_hand(x, mask, groups, sums)) is not None:
        return summary
    return measure_in_torch(x, mask, groups, sums)


def _wide_enough(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
