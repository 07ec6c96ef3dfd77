"""Values of samples for rows of activations: ``generate`` makes several rows from one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.errors import MiCrowError, TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts

__all__ = ["check_rows_are_samples", "entry_of", "of_rows", "sample_of_rows"]


def entry_of(batch: Any, key: str, forms: str, error: type[MiCrowError], by_itself: str = "") -> Any:
    """Return what a batch has under a key that a controller reads, as its argument ``key="batch"`` says.

    Args:
        batch: the running batch.
        key: the key, and the name of the argument.
        forms: what may be there, for the message.
        error: what to raise if it is not a mapping, or has no such key.
        by_itself: what puts it there without more ado, for the message.
    """
    argument = f"{key}='batch'"
    if not isinstance(batch, Mapping):
        raise error(f"{argument} reads batch[{key!r}], and the batch is a {type(batch).__name__}: it must be a mapping")
    if key not in batch:
        raise error(
            f"{argument} reads batch[{key!r}], and the batch has only: {', '.join(map(repr, batch))}. Put {forms} "
            f"there, in the dataset or in predict_step{by_itself and f'; {by_itself} does so by itself'}"
        )
    return batch[key]


def of_rows(values: Tensor, x: Tensor, ctx: HookContext, by_row: bool = False) -> Tensor | None:
    """Return the value for each row of an activation, from the values of the samples.

    The batch may name the sample of each row, see `sample_of_rows`. Inside ``generate``, beam search and
    ``num_return_sequences`` make the same number of adjacent rows from each sample; a layer may put all tokens in one
    row, one sample after the other. Elsewhere nothing shows which rows belong to a sample: DPO, for example, puts all
    rejected answers after all chosen ones.

    Args:
        values: ``(B, ...)``, one for each sample.
        x: the activation, with its rows in the first dimension.
        ctx: the hook's context.
        by_row: whether as many values as rows are those of the rows, as a function of the activation returns them.

    Returns:
        ``(rows, ...)``; ``None`` if the samples do not have equally many rows, or it is not known which are theirs.

    Raises:
        TokensUnknown: the layer's first dimension is known to be something else, or the batch names a sample that has
            no value.
    """
    check_rows_are_samples(x, ctx)
    samples = None if by_row and len(x) == len(values) else sample_of_rows(x, ctx)
    if samples is not None:
        return _at(values, samples, ctx)
    if len(x) == len(values):
        return values
    each, rest = divmod(len(x), max(1, len(values)))
    is_expanded = each > 0 and not rest and (len(values) == 1 or _are_adjacent(len(values), x, ctx.facts))
    return values.repeat_interleave(each, 0) if is_expanded else None


def sample_of_rows(x: Tensor, ctx: HookContext) -> Tensor | None:
    """Return the sample of each row of an activation, ``(rows,)``, if the batch names it.

    That is ``batch["sample_of_row"]``, or for the nodes of several graphs the vector ``batch.batch`` of PyTorch
    Geometric. A vector of another length is of other rows. If there are as many edges as nodes, nothing shows which of
    both a layer gives, so the vector does not count.

    Args:
        x: the activation, with its rows in the first dimension.
        ctx: the hook's context.
    """
    if ctx.facts.generating:
        return None  # these are the rows of the batch as it was loaded
    batch = ctx.batch
    if isinstance(batch, Mapping):
        samples = batch.get("sample_of_row")
    else:
        samples, edges = getattr(batch, "batch", None), getattr(batch, "edge_index", None)
        if isinstance(samples, Tensor) and isinstance(edges, Tensor) and edges.shape[-1] == len(samples):
            return None
    if not isinstance(samples, Tensor) or samples.is_floating_point() or samples.shape != x.shape[:1]:
        return None
    return samples


def _at(values: Tensor, samples: Tensor, ctx: HookContext) -> Tensor:
    """Return the value of each row's sample.

    Raises:
        TokensUnknown: a sample has no value; on a GPU, torch ends the run instead, because looking waits for it.
    """
    samples = samples.to(values.device)
    can_look = samples.device.type == "cpu" and samples.numel() and not torch.compiler.is_compiling()
    if can_look and not 0 <= samples.min() <= samples.max() < len(values):
        raise TokensUnknown(
            f"{ctx.layer!r}: the batch names samples {int(samples.min())} to {int(samples.max())} for its rows, and "
            f"there are {len(values)} values: give one for each sample"
        )
    return values.index_select(0, samples)


def _are_adjacent(samples: int, x: Tensor, facts: PassFacts) -> bool:
    """Return whether the rows of a sample are known to be adjacent."""
    rows, tokens = facts.rows, facts.tokens
    if facts.guided:
        return False  # MusicGen, for example, puts a second row for each sample after all of the first
    if facts.generating:
        return rows is None or len(x) in (rows, rows * (tokens or 1))
    return rows == samples and x.dim() == 2 and len(x) == samples * (tokens or 1)  # all tokens in one row


def check_rows_are_samples(x: Tensor, ctx: HookContext) -> None:
    """Refuse an activation whose rows are known to be neither samples nor tokens, one sample after the other.

    Raises:
        TokensUnknown: the rows are something else.
    """
    rows, tokens = ctx.facts.rows, ctx.facts.tokens
    if x.dim() == 3 and rows != tokens and x.shape[:2] == (tokens, rows):
        raise TokensUnknown(
            f"{ctx.layer!r} gives {tuple(x.shape)} and the model was called with (batch, tokens) = {(rows, tokens)}, "
            "so its rows are tokens and not samples: use one value for all samples, or choose another layer"
        )
    if x.dim() > 3 and x.shape[1:3] == (rows, tokens) and ctx.axes is not Axes.STREAMS_LATER:
        raise TokensUnknown(
            f"{ctx.layer!r} gives {tuple(x.shape)} and the model was called with (batch, tokens) = {(rows, tokens)}, "
            "so its rows are streams and not samples: use one value for all samples, or choose another layer"
        )
    axes = ctx.axes.of(x)
    if not axes.samples_first:
        raise TokensUnknown(
            f"{ctx.layer!r} gives {axes.value}, so the part of each sample cannot be found in its activation "
            f"{tuple(x.shape)}: use one value for all samples, or choose another layer"
        )
