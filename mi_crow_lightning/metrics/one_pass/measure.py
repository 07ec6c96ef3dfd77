"""One look at an activation: everything that a reading needs of it, made on the device.

A chunk of the activation at a time is brought into the cache, and all statistics are taken from it there, so
the activation itself is read from memory once and the workspace is bounded (some 10 MB on the CPU, 200 MB on
an accelerator) however large it is. Nothing here waits for the device, draws random numbers or changes its
input. Elements to leave out are multiplied away: indexing makes a shape that depends on the data, which would
wait. All sums are float64, which does not exist on MPS; there the caller moves the activation to the CPU first.

That is the form for eager torch. What is finite and on a CPU is measured by ``on_cpu.py``, on CUDA the kernels in
``on_cuda/`` do the same, and in a graph that is being compiled ``in_graph.py`` does.
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.metrics.log2_bins import BINS, CENTRE, count_bins
from mi_crow_lightning.metrics.one_pass.buffers import Place
from mi_crow_lightning.metrics.one_pass.in_graph import measure_traced
from mi_crow_lightning.metrics.one_pass.on_cpu import is_at_hand, measure_at_hand
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import launched, suits
from mi_crow_lightning.metrics.one_pass.summary import Group, Summary
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, empty_rows, merge_all

# Elements in work at a time: about a cache full on the CPU, enough to outweigh kernel launches elsewhere.
_CHUNK_CPU = 2**18
_CHUNK_ACCELERATOR = 2**22


def summarize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The row of `measure`, all groups: ``(ROW_SIZE,)``.

    Examples:
        >>> row = summarize(torch.tensor([[1.0, 3.0], [0.0, float("nan")]]))
        >>> row[Row.COUNT].item(), row[Row.ZEROS].item(), row[Row.NONFINITE].item()
        (3.0, 1.0, 1.0)
        >>> summarize(torch.tensor([[1.0, 3.0], [9.0, 9.0]]), torch.tensor([True, False]))[Row.MEAN].item()
        2.0
    """
    return measure(x, mask).row


@torch.no_grad()
def measure(x: Tensor, mask: Tensor | None = None, groups: Group = Group.ALL) -> Summary:
    """Summarise the selected, finite elements of an activation.

    The channels are the last dimension, and what is left when it is taken away are the tokens. Of ``(B, C,
    H, W)``, unless its mask has two dimensions or more, the channels are dimension 1 and the tokens pixels.
    float64 activations beyond 1e75 overflow ``M4``; narrower dtypes cannot.

    Args:
        x: activations of any shape, for example ``(B, T, D)``, and any floating-point dtype. Not modified.
        mask: bool, of the shape of ``x``'s leading dimensions, for example ``(B, T)``: True where elements
            count. None selects all.
        groups: what to compute; the other numbers are those of an empty row.

    Returns:
        Row and channels in float64 on ``x``'s device. Elements that are nan or infinite are counted in
        ``Row.NONFINITE``; token norms and channels take them as zeros, and nothing else knows of them.

    Raises:
        TypeError: ``x`` is not floating-point, or ``mask`` is not bool.
        ValueError: ``mask``'s shape is not that of ``x``'s leading dimensions.

    Examples:
        >>> measure(torch.tensor([[3.0, -4.0], [0.0, 4.0]]), groups=Group.CHANNELS).channels
        tensor([[ 9., 32.],
                [ 3.,  4.]], dtype=torch.float64)
    """
    return measure_tokens(*as_tokens(x, mask), groups)


def as_tokens(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The arguments of `measure` as ``(N, D)``, and ``(N, 1)`` or, if it chooses elements, ``(N, D)``.

    Raises:
        TypeError, ValueError: those of `measure`.
    """
    _check(x, mask)
    return _tokens(x.detach(), mask)


def measure_tokens(tokens: Tensor, keep: Tensor | None, groups: Group) -> Summary:
    """`measure` of what `as_tokens` gave."""
    width = tokens.shape[1] if Group.CHANNELS in groups else 0
    if tokens.numel() == 0:
        row, channels = empty_rows(1, tokens.device)[0], tokens.new_zeros(2, width, dtype=torch.float64)
        return Summary(row, channels)
    if torch.compiler.is_compiling():
        return measure_traced(tokens, keep, groups)
    if suits(tokens, keep):
        row, channels = tokens.new_empty(ROW_SIZE, dtype=torch.float64), tokens.new_empty(2, width, dtype=torch.float64)
        if launched(tokens, keep, groups, Place(row, channels[0], channels[1])):
            return Summary(row, channels)
    step = max(1, (_CHUNK_CPU if tokens.device.type == "cpu" else _CHUNK_ACCELERATOR) // tokens.shape[1])
    masks = repeat(None) if keep is None else keep.split(step)
    parts = [_measure_chunk(*chunk, groups) for chunk in zip(tokens.split(step), masks, strict=False)]
    if len(parts) == 1:
        return parts[0]
    sums, peaks = torch.stack([part.channels for part in parts]).unbind(1)
    return Summary(merge_all(torch.stack([part.row for part in parts])), torch.stack([sums.sum(0), peaks.amax(0)]))


def _check(x: Tensor, mask: Tensor | None) -> None:
    if not x.is_floating_point():
        raise TypeError(f"activations must be floating-point, not {x.dtype} (shape {tuple(x.shape)})")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be torch.bool, not {mask.dtype}; for an attention mask pass mask.bool()")
    if mask.shape != x.shape[: mask.dim()]:
        raise ValueError(
            f"the mask's shape {tuple(mask.shape)} is not that of the leading dimensions "
            f"of the activations' {tuple(x.shape)}"
        )


def _tokens(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x`` as ``(N, D)``, channels last, and the mask as ``(N, 1)``, or ``(N, D)`` if it chooses elements."""
    if x.dim() == 4 and (mask is None or mask.dim() < 2):
        x = x.movedim(1, -1)
    width = x.shape[-1] if x.dim() else 1
    tokens = x.reshape(math.prod(x.shape[:-1]), width)
    if mask is None:
        return tokens, None
    if mask.dim() == x.dim():
        return tokens, mask.reshape(tokens.shape)
    lead = x.shape[:-1]
    return tokens, mask[(...,) + (None,) * (len(lead) - mask.dim())].expand(lead).reshape(-1, 1)


class _Chunk(NamedTuple):
    """Elements, and as numbers which of them count: arithmetic on booleans is several times slower."""

    x: Tensor  # (N, D), float32 or float64, zero where it does not count
    counts: Tensor  # (N, D), ones and zeros
    tokens: Tensor  # number of selected tokens, float64
    selected: Tensor  # number of selected elements, float64
    n: Tensor  # those of them that are finite


def _measure_chunk(x: Tensor, mask: Tensor | None, groups: Group) -> Summary:
    x = x if x.dtype == torch.float64 else x.float()
    by_token = mask is None or mask.shape[1] == 1
    if by_token and is_at_hand(x) and (summary := measure_at_hand(x, mask, groups)) is not None:
        return summary
    chunk = _chunk(x, mask)
    values = {Row.COUNT: chunk.n, Row.NONFINITE: chunk.selected - chunk.n, Row.TOKENS: chunk.tokens}
    channels = torch.zeros(2, 0, dtype=torch.float64, device=x.device)
    if Group.EXTREMES in groups:
        values |= _extremes(chunk)
    bins = _bins(chunk) if Group.BINS in groups else None
    if groups & (Group.MOMENTS | Group.TOKENS | Group.CHANNELS):
        wide = chunk.x.to(torch.float64, copy=True)
        squares = wide * wide  # (N, D)
        if Group.TOKENS in groups:
            norms = squares.sum(1).sqrt()
            values |= {Row.NORM_SUM: norms.sum(), Row.NORM_MAX: norms.amax()}
        if Group.CHANNELS in groups:
            channels = torch.stack([squares.sum(0), _peaks(chunk.x)])
        if Group.MOMENTS in groups:
            values |= _moments(chunk, wide, squares)
    return Summary(_row(values, bins, channels), channels)


def _chunk(x: Tensor, mask: Tensor | None) -> _Chunk:
    """The chunk with zeros for what is left out."""
    clean = x.nan_to_num(0.0, 0.0, 0.0)
    counts = (x - x).add_(1.0).nan_to_num_(0.0)  # nan where x is nan or infinite
    if mask is None:
        tokens = torch.full((), float(len(x)), dtype=torch.float64, device=x.device)
        selected = tokens * x.shape[1]
    else:
        keep = mask.to(x.dtype)
        clean, counts = clean.mul_(keep), counts.mul_(keep)
        tokens = keep.amax(1).sum(dtype=torch.float64)
        selected = keep.sum(dtype=torch.float64) * (x.shape[1] // keep.shape[1])
    return _Chunk(clean, counts, tokens, selected, counts.sum(dtype=torch.float64))


def _moments(chunk: _Chunk, wide: Tensor, work: Tensor) -> dict[Row, Tensor]:
    """Overwrites ``wide``, the elements in float64, and ``work``: fresh memory costs more than arithmetic."""
    mean = wide.sum() / chunk.n.clamp(min=1)
    d = wide.sub_(mean)
    d.mul_(chunk.counts)
    squares = torch.mul(d, d, out=work)
    m2, (d, squares) = squares.sum(), (d.flatten(), squares.flatten())
    return {Row.MEAN: mean, Row.M2: m2, Row.M3: squares.dot(d), Row.M4: squares.dot(squares)}


def _extremes(chunk: _Chunk) -> dict[Row, Tensor]:
    zeros = chunk.n - torch.count_nonzero(chunk.x)
    away = (1 - chunk.counts) * torch.finfo(chunk.x.dtype).max
    low = torch.where(chunk.n > 0, (chunk.x + away).amin().double(), math.inf)
    high = torch.where(chunk.n > 0, (chunk.x - away).amax().double(), -math.inf)
    return {Row.MINIMUM: low, Row.MAXIMUM: high, Row.ZEROS: zeros}


def _peaks(x: Tensor) -> Tensor:
    """The largest absolute value of each channel, ``(D,)``."""
    return torch.maximum(x.amax(0), -x.amin(0)).double()


def _bins(chunk: _Chunk) -> Tensor:
    bins = count_bins(chunk.x)
    bins[CENTRE] -= chunk.x.numel() - chunk.n  # the zeros that stand for what was left out
    return bins


def _row(values: dict[Row, Tensor], bins: Tensor | None, channels: Tensor) -> Tensor:
    """An empty row with some numbers filled in."""
    empty = {Row.MINIMUM: math.inf, Row.BAD_BATCH: math.inf, Row.MAXIMUM: -math.inf, Row.CHANNELS: channels.shape[1]}
    head = [
        values[field] if field in values else channels.new_full((), empty.get(field, 0.0))
        for field in Row
        if field < Row.BINS
    ]
    return torch.cat([torch.stack(head), channels.new_zeros(BINS) if bins is None else bins])
