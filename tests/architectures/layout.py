"""Where the tokens of a call stand in an activation, found by the lengths of its dimensions, and edits by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def chosen_elements(x: Tensor, chosen: Tensor | None) -> Tensor | None:
    """Return which elements of an activation belong to the chosen tokens, a mask that broadcasts over ``x``.

    Args:
        x: an activation in which ``(B, T)`` stands among the leading dimensions, in this order, swapped or in one.
        chosen: the tokens, ``(B, T)``; ``None`` chooses all elements.

    Returns:
        ``None`` if no dimensions of ``x`` have these lengths.
    """
    if chosen is None:
        return torch.ones_like(x, dtype=torch.bool)
    rows, tokens = chosen.shape
    for first in range(x.dim() - 1):
        here = tuple(x.shape[first : first + 2])
        if here == (rows, tokens) and first + 2 < x.dim():
            return _placed(chosen, x, first)
        if here == (tokens, rows) and first + 2 < x.dim():
            return _placed(chosen.T, x, first)
        if x.shape[first] == rows * tokens and tokens > 1:
            return _placed(chosen.flatten(), x, first)
    return None


def channels_of(x: Tensor) -> int:
    """Return the dimension of the channels, from the end: -3 in a picture ``(B, C, H, W)`` whose sides are equal."""
    channels_are_last = x.dim() != 4 or x.shape[2] != x.shape[3]
    return -1 if channels_are_last else -3


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """Return a vector ``(D,)`` in a shape that broadcasts along the channels of an activation."""
    return vector.reshape(-1, *[1] * (-1 - channels_of(x)))


def _placed(mask: Tensor, x: Tensor, first: int) -> Tensor:
    return mask.reshape([1] * first + list(mask.shape) + [1] * (x.dim() - first - mask.dim())).expand(x.shape)


def tensor_of(out: Any) -> Tensor | None:
    """Return the activation in what a layer returned: the tensor, or the first one of a tuple or an output object."""
    if isinstance(out, Tensor):
        return out
    values = list(out.values()) if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def with_tensor(out: Any, x: Tensor) -> Any:
    """Return what a layer returned, with another activation in its place."""
    if isinstance(out, Tensor):
        return x
    if isinstance(out, dict):
        name = next(name for name, value in out.items() if isinstance(value, Tensor))
        return type(out)(**(dict(out) | {name: x}))
    place = next(place for place, value in enumerate(out) if isinstance(value, Tensor))
    changed = [*out[:place], x, *out[place + 1 :]]
    return type(out)(*changed) if hasattr(out, "_fields") else type(out)(changed)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a model returned, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def all_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Return whether tensors are equal to the bit."""
    return len(one) == len(other) and all(
        x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(one, other, strict=True)
    )


def all_close(one: list[Tensor], other: list[Tensor]) -> bool:
    """Return whether tensors are equal but for rounding."""
    return len(one) == len(other) and all(
        x.shape == y.shape and torch.allclose(x.float(), y.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for x, y in zip(one, other, strict=True)
    )
