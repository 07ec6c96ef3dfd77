"""Values of samples at rows of activations: ``generate`` makes several rows of one sample."""

from __future__ import annotations

from torch import Tensor

__all__ = ["of_rows"]


def of_rows(values: Tensor, rows: int) -> Tensor | None:
    """What belongs to each row, where values belong to samples.

    Beam search and ``num_return_sequences`` make the same number of rows of each sample, one after the other.

    Args:
        values: ``(B, ...)``, one for each sample.
        rows: how many rows there are.

    Returns:
        ``(rows, ...)``; ``None`` where the rows are not so many for each sample.

    >>> import torch
    >>> of_rows(torch.tensor([1.0, 2.0]), 4)
    tensor([1., 1., 2., 2.])
    """
    if not len(values) or rows % len(values):
        return None
    each = rows // len(values)
    return values if each == 1 else values.repeat_interleave(each, 0)
