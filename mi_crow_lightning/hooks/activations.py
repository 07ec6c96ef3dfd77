"""Taking the activation out of a layer's input or output, and putting an edited one back.

Layers return plain tensors, tuples, lists, dicts or transformers' ``ModelOutput``, and are called with positional or
keyword inputs. An activation is found once, as a *path* of keys into the value. The same path puts an edited tensor
back into a shallow copy, so the model's own containers are never written to.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mi_crow_lightning.errors import NoTensorFound

__all__ = ["is_inference", "put_input", "put_output", "shape_of", "take_input", "take_output"]

Path = tuple[Any, ...]

# The names under which modules keep the activation, whatever else stands beside it (a loss, a cache).
_PREFERRED_KEYS = ("last_hidden_state", "hidden_states", "logits")


def take_output(output: Any) -> Tensor:
    """Return the activation in a layer's output.

    A tensor is the activation itself. In a tuple or list the activation is the first floating-point tensor with a
    dimension; in a dict or ``ModelOutput`` it is the tensor named ``last_hidden_state``, ``hidden_states`` or
    ``logits``, else the first.

    Raises:
        NoTensorFound: the output holds no tensor.

    Examples:
        >>> import torch
        >>> take_output((torch.tensor(0.5), torch.ones(2, 3))).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    return _get(output, _path(output, "output"))


def put_output(output: Any, edited: Tensor) -> Any:
    """Return a copy of ``output`` with ``edited`` in place of its activation."""
    if isinstance(output, Tensor):
        return edited
    return _replaced(output, _path(output, "output"), edited)


def take_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the activation in a layer's input: positional inputs are searched first, then keywords.

    Raises:
        NoTensorFound: the input holds no tensor.
    """
    if args and isinstance(args[0], Tensor) and _is_activation(args[0]):
        return args[0]
    call = (args, dict(kwargs))
    return _get(call, _path(call, "input"))


def put_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], edited: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` with ``edited`` in place of the activation."""
    call = (args, dict(kwargs))
    new: tuple[tuple[Any, ...], dict[str, Any]] = _replaced(call, _path(call, "input"), edited)
    return new


def shape_of(x: Tensor | None) -> tuple[int, ...] | None:
    """Return the shape of a tensor for a message; ``None`` if there is no tensor, or it has no shape to give.

    Nested tensors, lazy parameters and subclasses may raise whatever they like when they are asked.
    """
    try:
        return tuple(x.shape) if x is not None else None
    except Exception:
        return None


def is_inference(x: Tensor) -> bool:
    """Return whether a tensor was made in inference mode; false of one that raises when it is asked."""
    try:
        return x.is_inference()
    except Exception:
        return False


def _path(value: Any, what: str) -> Path:
    for accept in (_is_activation, _is_tensor):
        path = _find(value, accept)
        if path is not None:
            return path
    raise NoTensorFound(
        f"the layer's {what} holds no tensor: it is {_outline(value)}. "
        "Choose another layer, or override _hook_fn and take what you need from it."
    )


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _find(value: Any, accept: Any) -> Path | None:
    if accept(value):
        return ()
    for key, child in _children(value):
        path = _find(child, accept)
        if path is not None:
            return (key, *path)
    return None


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        # Only tensors: beside logits, "hidden_states" is a tuple of the outputs of all layers.
        preferred = [key for key in _PREFERRED_KEYS if isinstance(value.get(key), Tensor)]
        return [(key, value[key]) for key in (*preferred, *(k for k in value if k not in preferred))]
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    return []


def _get(value: Any, path: Path) -> Tensor:
    for key in path:
        value = value[key]
    assert isinstance(value, Tensor)
    return value


def _replaced(value: Any, path: Path, new: Tensor) -> Any:
    if not path:
        return new
    key, *rest = path
    child = _replaced(value[key], tuple(rest), new)
    if isinstance(value, tuple):
        items = [*value[:key], child, *value[key + 1 :]]
        return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
    changed = copy.copy(value)
    changed[key] = child
    return changed


def _outline(value: Any) -> str:
    """Describe a value by its type and, for a container, its items: enough to see what went wrong."""
    name = type(value).__name__
    held = [f"{key!r}: {type(child).__name__}" for key, child in _children(value)]
    return f"{name} ({', '.join(held[:8])})" if held else f"an empty or opaque {name}"
