"""Rows of an activation with the class of each, from the labels of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import is_finite
from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.rows import check_rows_are_samples

__all__ = ["Column", "class_numbers", "labelled_means", "labelled_tokens", "labels_of"]

Column = Callable[[Any], Any] | str  # a configuration file names a function first
NO_FACTS = PassFacts()


def labels_of(batch: Any, labels: Column) -> Any:
    """Return the labels of a batch.

    Args:
        batch: a mapping, or whatever the function takes.
        labels: their key, or a function from the batch to them.

    Raises:
        ValueError: the batch has none.
    """
    if callable(labels):
        found, where = labels(batch), f"that labels={shown(labels)} returns"
    else:
        found, where = batch.get(labels) if isinstance(batch, Mapping) else None, f"under {labels!r}"
    if found is None:
        has = f"has the keys {shown([*batch], 200)}" if isinstance(batch, Mapping) else f"is a {type(batch).__name__}"
        raise ValueError(
            f"the batch needs labels {where}, and it {has}: give labels= the key that holds them, or a function from "
            "the batch to them"
        )
    return found


def class_numbers(labels: Any, classes: Sequence[Any], ignore_index: int) -> Tensor:
    """Return the number of the class of each label, of the shape of the labels; -1 for one that is ignored.

    Args:
        labels: a tensor, or a list of numbers or names.
        classes: the classes, as they occur in the labels.
        ignore_index: the label that is ignored.

    Returns:
        int64; -2, on a device that would have to be waited for, where a label is of no class.

    Raises:
        ValueError: a label is of no class.

    Examples:
        >>> class_numbers(["joy", "sorrow"], ("sorrow", "joy"), -100)
        tensor([1, 0])
    """
    if isinstance(labels, (list, tuple)) and any(isinstance(one, str) for one in labels):
        numbers = {name: number for number, name in enumerate(classes)} | {ignore_index: -1}
        if unknown := [one for one in labels if one not in numbers]:
            raise ValueError(_of_no_class(unknown[0], len(unknown), classes))
        return torch.tensor([numbers[one] for one in labels])
    labels = torch.as_tensor(labels)
    if not all(is_finite(one) for one in classes):
        raise ValueError(f"the labels are numbers, and the classes {shown([*classes], 200)} are names")
    is_class = labels[..., None] == torch.as_tensor(classes, device=labels.device)
    found = torch.where(is_class.any(-1), is_class.long().argmax(-1), -2)
    found = found.masked_fill(labels == ignore_index, -1)
    if found.device.type == "cpu" and (found == -2).any():
        of_none = labels[found == -2]
        raise ValueError(_of_no_class(of_none[0].item(), len(of_none), classes))
    return found


def _of_no_class(label: Any, count: int, classes: Sequence[Any]) -> str:
    others = f" (and {count - 1} more labels)" if count > 1 else ""
    return (
        f"label {label!r}{others} is of no class: the classes are {shown([*classes], 200)}. Give classes= as they "
        "stand in the labels, or ignore_index= for a label that does not count"
    )


def labelled_means(x: Tensor, mask: Tensor | None, label: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
    """Return the mean of each sample over its chosen tokens, and its class.

    Args:
        x: ``(B, T, D)``, ``(B * T, D)``, ``(B, D)``, or with channels where the layer says, ``(B, C, H, W)``.
        mask: the chosen tokens, bool; ``None`` for all.
        label: ``(B,)``, as `class_numbers` gives it.
        ctx: the call.

    Returns:
        ``(B, D)``, float64 but on Apple's GPUs, and ``(B,)``: -1 also for samples without a chosen token, and for
        those that hold a number that is not finite.

    Raises:
        ValueError: there is not one label for each sample.
        TokensUnknown: the rows of ``x`` are not samples.
    """
    if label.dim() != 1:
        raise ValueError(
            f"the labels are {tuple(label.shape)}, and per='sample' needs one for each sample, (B,): use per='token'"
        )
    x, mask = _in_rows(x, mask, len(label), ctx)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    if mask is None:
        rows, chosen = x.mean(1, dtype=wide), torch.ones(len(x), dtype=torch.bool, device=x.device)
    else:
        # Not x * mask: what padding holds may be infinite.
        count = mask.sum(1)
        rows = torch.where(mask[..., None], x, 0.0).sum(1, dtype=wide) / count.clamp(min=1)[:, None]
        chosen = count > 0
    return _finite(rows, chosen, label)


def labelled_tokens(x: Tensor, mask: Tensor | None, label: Tensor, ctx: HookContext) -> tuple[Tensor, Tensor]:
    """Return the chosen tokens, and the class of each.

    Args:
        x: as in `labelled_means`.
        mask: the chosen tokens, bool; ``None`` for all.
        label: ``(B, T)``, or ``(B,)`` for all tokens of a sample.
        ctx: the call.

    Returns:
        ``(B * T, D)`` float32 or wider, and ``(B * T,)``: -1 also for tokens that are not chosen or not finite.

    Raises:
        ValueError: there is not one label for each token.
        TokensUnknown: the rows of ``x`` are not samples.
    """
    x, mask = _in_rows(x, mask, len(label), ctx)
    of_tokens = label.flatten(1) if label.dim() > 1 else label[:, None].expand(x.shape[:2])
    if of_tokens.shape != x.shape[:2]:
        raise ValueError(
            f"the labels are {tuple(label.shape)}, and {ctx.layer!r} gives {x.shape[1]} tokens in each of {len(x)} "
            f"samples: give labels (B, T) = {tuple(x.shape[:2])}, or (B,)"
        )
    rows = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
    chosen = mask.flatten() if mask is not None else torch.ones(len(rows), dtype=torch.bool, device=x.device)
    return _finite(rows, chosen, of_tokens.flatten())


def _finite(rows: Tensor, chosen: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    label = label.to(rows.device, non_blocking=True)
    counts = chosen & rows.isfinite().all(-1)
    return torch.where((counts & (label >= 0))[:, None], rows, 0.0), torch.where(counts, label, -1)


def _in_rows(x: Tensor, mask: Tensor | None, samples: int, ctx: HookContext) -> tuple[Tensor, Tensor | None]:
    """Return ``x`` as (B, T, D) and ``mask`` as (B, T)."""
    facts = getattr(ctx, "facts", NO_FACTS)  # an operation in a graph has none
    if facts.generating:
        raise TokensUnknown(
            "a probe reads texts that are there, and the model is generating: leave schedule= out, or give one without "
            "the stage that generates"
        )
    if facts is not NO_FACTS:
        check_rows_are_samples(x, ctx)
    if mask is None and x.dim() > 2:
        dim = ctx.channel_dim(x)
        x = x if x.dim() == 3 and dim == -1 else x.movedim(dim, -1).flatten(1, -2)  # (B, C, H, W) -> (B, H * W, C)
    elif x.dim() == 2 and mask is not None and len(x) % samples == 0:
        x, mask = x.unflatten(0, (samples, -1)), mask.reshape(samples, -1)
    elif x.dim() == 2 and mask is None:
        tokens = facts.tokens
        flat = tokens is not None and facts.rows == samples and len(x) == samples * tokens != samples
        x = x.unflatten(0, (samples, tokens)) if flat else x[:, None]
    if x.dim() != 3 or len(x) != samples:
        raise ValueError(
            f"{ctx.layer!r} has an activation of shape {tuple(x.shape)}, and the batch has {samples} labels: one label "
            "for each of its samples is needed"
        )
    return x, mask
