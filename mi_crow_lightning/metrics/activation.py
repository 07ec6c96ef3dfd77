"""The summary of a layer's activations as one row of float64: made on the device, read once.

A row is ``[count, mean, M2, minimum, maximum, zeros, nonfinite, 65 bin counts]`` (:class:`Row`), 576 bytes
whatever the activations' size. Rows of many layers stack to one ``(L, ROW_SIZE)`` buffer, so a whole network
is one transfer or one gather. Nothing here waits for the device, draws random numbers or changes its input.

Cost: a chunk of the activations at a time is widened to float64, so the workspace is bounded (some 10 MB on
the CPU, 100 MB on an accelerator) however large the activations. float64 has to exist: it does not on MPS,
where the caller moves the activations to the CPU first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mi_crow_lightning.metrics.histogram import Histogram
from mi_crow_lightning.metrics.log2_bins import CENTRE, EDGES, count_bins
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, check_rows, empty_rows, merge, merge_all

__all__ = [
    "EDGES",
    "ROW_SIZE",
    "STATISTICS",
    "Row",
    "empty_rows",
    "histogram",
    "merge",
    "merge_all",
    "statistics",
    "summarize",
]

STATISTICS = ("mean", "std", "rms", "min", "max", "abs_max", "zero_share", "nonfinite_count")

# Elements widened at a time: about a cache full on the CPU, enough to outweigh kernel launches elsewhere.
_CHUNK_CPU = 2**18
_CHUNK_ACCELERATOR = 2**22


@torch.no_grad()
def summarize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Summarise the selected, finite elements of an activation in one row.

    ``mean = sum(x) / n`` and ``M2 = sum((x - mean)**2)`` in two passes over each chunk, in float64; chunks
    are joined by :func:`merge`. float64 activations beyond 1e150 overflow ``M2`` to infinity; narrower dtypes
    cannot.

    Args:
        x: activations of any shape, for example ``(B, T, D)``, and any floating-point dtype. Not modified.
        mask: bool, of the shape of ``x``'s leading dimensions, for example ``(B, T)``: True where elements
            count. None selects all.

    Returns:
        ``(ROW_SIZE,)`` float64 on ``x``'s device. Elements that are nan or infinite are counted in
        ``Row.NONFINITE`` and nowhere else. With no element left the row is that of :func:`empty_rows`, save
        for ``Row.NONFINITE``.

    Raises:
        TypeError: ``x`` is not floating-point, or ``mask`` is not bool.
        ValueError: ``mask``'s shape is not that of ``x``'s leading dimensions.

    Example:
        >>> row = summarize(torch.tensor([[1.0, 3.0], [0.0, float("nan")]]))
        >>> row[Row.COUNT].item(), row[Row.ZEROS].item(), row[Row.NONFINITE].item()
        (3.0, 1.0, 1.0)
        >>> summarize(torch.tensor([[1.0, 3.0], [9.0, 9.0]]), torch.tensor([True, False]))[Row.MEAN].item()
        2.0
    """
    _check(x, mask)
    if x.numel() == 0:
        return empty_rows(1, x.device)[0]
    width = 1 if mask is None else math.prod(x.shape[mask.dim() :])
    step = max(1, (_CHUNK_CPU if x.device.type == "cpu" else _CHUNK_ACCELERATOR) // width)
    elements = x.detach().reshape(-1, width)  # (N, W)
    keep = None if mask is None else mask.reshape(-1, 1)  # (N, 1)
    parts = [
        _summarize_chunk(elements[i : i + step], None if keep is None else keep[i : i + step])
        for i in range(0, len(elements), step)
    ]
    return merge_all(torch.stack(parts))


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


def _summarize_chunk(x: Tensor, keep: Tensor | None) -> Tensor:
    """One row of ``x (N, W)`` where ``keep (N, 1)``."""
    # torch.where selects, never indexing: a shape that depends on the data would wait for the device.
    x = x.float() if x.itemsize < 2 else x  # float8 has hardly any operations
    finite = torch.isfinite(x)
    valid = finite if keep is None else finite & keep
    count = torch.count_nonzero(valid)
    clean = torch.where(valid, x, 0.0)
    bins = count_bins(clean)
    bins[CENTRE] -= x.numel() - count  # the zeros that stand for what was left out
    selected = x.numel() if keep is None else torch.count_nonzero(keep) * x.shape[1]
    values = clean.double()
    mean = values.sum() / count.clamp(min=1)
    deviations = values.sub(mean).mul_(valid)
    head = [
        count,
        mean,
        deviations.square_().sum(),
        torch.where(valid, x, math.inf).amin(),
        torch.where(valid, x, -math.inf).amax(),
        count - torch.count_nonzero(clean),
        selected - count,
    ]
    return torch.cat([torch.stack([number.double() for number in head]), bins])


@torch.no_grad()
def statistics(rows: Tensor) -> dict[str, Tensor]:
    """Read the scalar statistics of rows.

    In the activations' own unit, but for ``zero_share`` (0 to 1) and ``nonfinite_count`` (elements). ``std``
    is that of the population, ``sqrt(M2 / n)``; ``rms = sqrt(mean**2 + M2 / n)``; ``abs_max = max(|min|,
    |max|)``.

    Args:
        rows: ``(..., ROW_SIZE)``, for example ``(L, ROW_SIZE)``.

    Returns:
        Name -> ``(...)`` float64, in the order of :data:`STATISTICS`; nan where nothing finite was seen, but
        for ``nonfinite_count``.

    Raises:
        ValueError: the last dimension is not ``ROW_SIZE``.

    Example:
        >>> values = statistics(summarize(torch.tensor([0.0, -4.0])))
        >>> {name: round(value.item(), 3) for name, value in values.items()}
        {'mean': -2.0, 'std': 2.0, 'rms': 2.828, 'min': -4.0, 'max': 0.0, 'abs_max': 4.0, 'zero_share': 0.5, \
'nonfinite_count': 0.0}
    """
    check_rows(rows)
    count, mean, m2, minimum, maximum, zeros, nonfinite = rows[..., : Row.BINS].unbind(-1)
    variance = m2 / count
    seen = {
        "mean": mean,
        "std": variance.sqrt(),
        "rms": (mean.square() + variance).sqrt(),
        "min": minimum,
        "max": maximum,
        "abs_max": torch.maximum(minimum.abs(), maximum.abs()),
        "zero_share": zeros / count,
    }
    values = {name: torch.where(count > 0, value, math.nan) for name, value in seen.items()}
    return {**values, "nonfinite_count": nonfinite.clone()}


def histogram(row: Tensor) -> Histogram:
    """Read the histogram of one row.

    Copies the row to the host: bring all layers over at once, then call this on each.

    Args:
        row: ``(ROW_SIZE,)``.

    Returns:
        The counts between :data:`EDGES`, with ``sum = n * mean`` and ``sum_squares = M2 + n * mean**2``;
        minimum and maximum are 0.0 when nothing was seen. They may lie outside of the outermost edges.

    Raises:
        ValueError: ``row`` is not one row.

    Example:
        >>> values = histogram(summarize(torch.tensor([1.0, -3.0])))
        >>> values.minimum, values.maximum, values.total, values.sum, values.sum_squares
        (-3.0, 1.0, 2.0, -2.0, 10.0)
    """
    if row.shape != (ROW_SIZE,):
        raise ValueError(f"a histogram is read from one row of shape ({ROW_SIZE},), not {tuple(row.shape)}")
    count, mean, m2, minimum, maximum, _zeros, _nonfinite, *counts = row.tolist()
    return Histogram(
        edges=EDGES,
        counts=tuple(counts),
        minimum=minimum if count else 0.0,
        maximum=maximum if count else 0.0,
        total=count,
        sum=count * mean,
        sum_squares=m2 + count * mean**2,
    )
