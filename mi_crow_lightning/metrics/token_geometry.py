"""Sums over tokens as vectors: how alike they are, how many dimensions they fill, and where the largest element is.

A row of float64 numbers holds the sums of one layer of width ``D``: `HEAD` numbers, `BINS` counts of token norms, and
as far as they are asked for the sum of the tokens' unit vectors ``(D,)`` and their Gram matrix ``(D, D)``. Rows of
disjoint sets of tokens merge exactly, in any order. A token with an element that is not finite is left out.

- Mean pairwise cosine: with ``u`` the unit vectors of ``n`` tokens, ``(norm(sum u)^2 - n) / (n (n - 1))`` is the mean
  over all pairs. Tokens of norm 0 have no direction and are left out.
- Effective rank: ``exp`` of the entropy of the singular values of the tokens ``(N, D)``, divided by their sum
  (RankMe, Garrido et al., arXiv 2210.02885). Singular values are roots of the eigenvalues of the Gram matrix.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import partial

import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.tokens import as_tokens

__all__ = ["BINS", "HEAD", "Head", "empty_row", "join_rows", "measure_geometry", "values_of_row"]

_PER_OCTAVE, _OCTAVES = 32, 32  # bins of norms from 2**-32 to 2**32
BINS = 2 * _OCTAVES * _PER_OCTAVE
"""How many bins norms are counted in, each 2.2 % wide."""
_CHUNK = 4096  # tokens that are in float64 at once


class Head(IntEnum):
    """The places of the first numbers of a row."""

    TOKENS = 0
    ELEMENTS = 1
    ABS_SUM = 2
    UNITS = 3  # tokens that have a direction
    ABS_MAX = 4
    CHANNEL = 5  # of the largest element
    POSITION = 6


HEAD = len(Head)
"""How many numbers a row begins with."""


def empty_row(width: int, cosine: bool, rank: bool, device: torch.device | None = None) -> Tensor:
    """Make the row that has seen no token."""
    size = HEAD + BINS + (width if cosine else 0) + (width * width if rank else 0)
    row = torch.zeros(size, dtype=torch.float64, device=device)
    row[Head.ABS_MAX] = -1.0
    row[Head.CHANNEL : Head.POSITION + 1] = math.nan
    return row


@torch.no_grad()
def measure_geometry(
    x: Tensor,
    mask: Tensor | None = None,
    channels: int | None = None,
    positions: Tensor | None = None,
    cosine: bool = True,
    rank: bool = True,
) -> Tensor:
    """Return the row of one activation; it does not wait for the device.

    Args:
        x: the activation, ``(B, T, D)`` in a transformer.
        mask: bool, of its leading dimensions: True where tokens count.
        channels: the dimension of the channels, see `measure`.
        positions: the place of each token in its text, of the leading dimensions; ``None`` if it is not known.
        cosine: whether to sum unit vectors.
        rank: whether to sum the Gram matrix.
    """
    tokens, keep = as_tokens(x, mask, channels)
    place = positions.reshape(-1) if positions is not None else None
    row = empty_row(tokens.shape[1], cosine, rank, x.device)
    for start in range(0, len(tokens), _CHUNK):
        part = slice(start, start + _CHUNK)
        seen = _chunk(
            tokens[part],
            None if keep is None else keep[part],
            None if place is None else place[part],
            partial(empty_row, tokens.shape[1], cosine, rank, x.device),
            cosine,
            rank,
        )
        row = join_rows(torch.stack([row, seen]))
    return row


def _chunk(
    x: Tensor, keep: Tensor | None, place: Tensor | None, make: partial[Tensor], cosine: bool, rank: bool
) -> Tensor:
    row, width = make(), x.shape[1]
    wide = x.double()
    counts = wide.isfinite().all(1)  # (N,)
    if keep is not None:
        counts = counts & keep.all(1)
    wide = torch.where(counts[:, None], wide, 0.0)
    norms = wide.square().sum(1).sqrt()
    number = counts.sum(dtype=torch.float64)
    row[Head.TOKENS], row[Head.ELEMENTS], row[Head.ABS_SUM] = number, number * width, wide.abs().sum()
    largest, at = torch.where(counts[:, None], wide.abs(), -1.0).reshape(-1).max(0)
    row[Head.ABS_MAX] = largest
    row[Head.CHANNEL] = torch.where(largest >= 0, (at % width).double(), math.nan)
    if place is not None:
        row[Head.POSITION] = torch.where(largest >= 0, place[at // width].double(), math.nan)
    bins = ((norms.log2() + _OCTAVES) * _PER_OCTAVE).floor().clamp(0, BINS - 1).nan_to_num(0.0).long()
    row[HEAD : HEAD + BINS].scatter_add_(0, bins, counts.double())
    end = HEAD + BINS
    if cosine:
        directed = norms > 0
        row[Head.UNITS] = directed.sum(dtype=torch.float64)
        row[end : end + width] = (wide / torch.where(directed, norms, 1.0)[:, None]).sum(0)
        end += width
    if rank:
        row[end:] = (wide.T @ wide).reshape(-1)
    return row


def join_rows(stacked: Tensor) -> Tensor:
    """Join rows ``(R, size)`` into one, ``(size,)``; of equally large elements that of the first row counts."""
    joined = stacked.sum(0)
    first = stacked[:, Head.ABS_MAX].argmax()
    where = slice(Head.ABS_MAX, Head.POSITION + 1)
    joined[where] = stacked[first, where]
    return joined


def values_of_row(row: Tensor, width: int, cosine: bool, rank: bool) -> dict[str, float]:
    """Read a row on the CPU; nothing where no token was seen.

    ``median_norm`` is the middle of the bin of the median, within 1.1 % of it.

    Examples:
        >>> row = measure_geometry(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        >>> {name: round(value, 2) for name, value in values_of_row(row, 2, True, True).items()}
        {'abs_mean': 1.75, 'median_norm': 2.99, 'max_channel': 1.0, 'cosine': 0.0, 'effective_rank': 1.98}
    """
    tokens = row[Head.TOKENS].item()
    if not tokens:
        return {}
    found = {
        "abs_mean": (row[Head.ABS_SUM] / row[Head.ELEMENTS]).item(),
        "median_norm": _median(row[HEAD : HEAD + BINS]),
        "max_channel": row[Head.CHANNEL].item(),
    }
    if not row[Head.POSITION].isnan():
        found["max_position"] = row[Head.POSITION].item()
    end, units = HEAD + BINS, row[Head.UNITS].item()
    if cosine:
        if units > 1:
            found["cosine"] = (row[end : end + width].square().sum().item() - units) / (units * (units - 1))
        end += width
    if rank:
        found["effective_rank"] = _effective_rank(row[end:].reshape(width, width))
    return found


def _median(counts: Tensor) -> float:
    """Return the middle of the bin that the lower median is in; 0.0 for the first, where norms are 0 or tiny."""
    place = int((counts.cumsum(0) >= counts.sum() / 2).nonzero()[0].item())
    return 2.0 ** ((place + 0.5) / _PER_OCTAVE - _OCTAVES) if place else 0.0


def _effective_rank(gram: Tensor) -> float:
    squares = torch.linalg.eigvalsh(gram)
    noise = squares.amax() * len(squares) * torch.finfo(torch.float64).eps
    values = torch.where(squares > noise, squares, 0.0).sqrt()
    if not values.sum():
        return math.nan
    shares = values / values.sum()
    return math.exp(-torch.special.xlogy(shares, shares).sum().item())
