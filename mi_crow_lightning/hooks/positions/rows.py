"""Values of samples for rows of activations: ``generate`` makes several rows from one sample."""

from __future__ import annotations

from torch import Tensor

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext

__all__ = ["check_rows_are_samples", "of_rows"]


def of_rows(values: Tensor, x: Tensor, ctx: HookContext) -> Tensor | None:
    """Return the value for each row of an activation, from the values of the samples.

    Beam search and ``num_return_sequences`` make the same number of adjacent rows from each sample.

    Args:
        values: ``(B, ...)``, one for each sample.
        x: the activation, with its rows in the first dimension.
        ctx: the hook's context.

    Returns:
        ``(rows, ...)``; ``None`` if the samples do not have equally many rows.

    Raises:
        TokensUnknown: the layer's first dimension is known to be something else.
    """
    check_rows_are_samples(x, ctx)
    if not len(values) or len(x) % len(values):
        return None
    each = len(x) // len(values)
    return values if each == 1 else values.repeat_interleave(each, 0)


def check_rows_are_samples(x: Tensor, ctx: HookContext) -> None:
    """Refuse an activation whose rows are known to be neither samples nor tokens, one sample after the other.

    Raises:
        TokensUnknown: the rows are something else.
    """
    axes = ctx.axes.of(x)
    if not axes.samples_first:
        raise TokensUnknown(
            f"{ctx.layer!r} gives {axes.value}, so the part of each sample cannot be found in its activation "
            f"{tuple(x.shape)}: use one value for all samples, or choose another layer"
        )
