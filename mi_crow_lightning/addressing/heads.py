"""Attention heads: the slices of what an attention hands to its output projection.

An attention computes each head apart, lays the results side by side, ``(B, T, H * D_head)``, and its output projection
mixes them. So head ``i`` is the channels ``i * D_head`` to ``(i + 1) * D_head`` of that layer's input. Heads are
those of the queries: with grouped queries (GQA) several of them share keys and values, and each has its own slice.

How many there are, the attention's attributes or the configuration say, under the names that transformers, timm and
torch have for it. The width of the projection must confirm it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mi_crow_lightning.addressing.counted import WHICH, chosen
from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.addressing.roles import part_in_role
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["Head", "attention_and_heads", "heads_of", "is_of_heads"]

_HEADS = re.compile(rf"(?P<attention>.+)\.head:(?P<which>{WHICH})")

# The first name that an attention has counts.
_PROJECTIONS = (
    *("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo", "o", "out_lin", "output_proj", "output.dense", "to_out.0"),
    *("to_out", "linear_out", "proj", "projection", "projection_layer", "post_proj", "output", "attn.o"),
    *("attention.out_proj", "attention.o_proj", "o_proj.linear"),
)
# Of attention whose values have another number or width of heads than its keys, theirs counts.
_COUNTS = (
    *("num_v_heads", "num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_attn_heads"),
    *("num_q_heads", "no_heads", "attention_heads"),
)
_WIDTHS = (
    *("v_head_dim", "head_v_dim", "values_head_dim", "attention_head_size", "head_dim", "head_size"),
    *("key_value_proj_dim", "d_head", "dim_head", "attention_head_dim"),
)
_SUBTRACTED = ("DiffLlama",)  # classes whose heads are differences of two, twice as wide


@dataclass(frozen=True)
class Head:
    """A head of an attention.

    Attributes:
        index: which one, from 0.
        count: how many heads the attention has.
        width: how many channels each has.
        projection: the name of the output projection, whose input holds the heads side by side.
    """

    index: int
    count: int
    width: int
    projection: str

    def of(self, x: Tensor) -> Tensor:
        """Return the head's part of the projection's input, a view: ``(..., H * D_head)`` to ``(..., D_head)``.

        Examples:
            >>> import torch
            >>> Head(1, 3, 2, "o_proj").of(torch.arange(6))
            tensor([2, 3])
        """
        return x.narrow(-1, self.index * self.width, self.width)


def is_of_heads(text: str) -> bool:
    """Return whether a signature is meant to be one of heads."""
    return ".head:" in text or text.startswith("head:")


def attention_and_heads(text: str) -> tuple[str, str]:
    """Return the signature of the attention in a signature of heads, and the choice of heads in it.

    Raises:
        LayerNotFound: it is written wrongly.

    Examples:
        >>> attention_and_heads("block:4.attn.head:0-3")
        ('block:4.attn', '0-3')
    """
    parsed = _HEADS.fullmatch(text)
    if parsed is None:
        raise LayerNotFound(
            f"layer {text!r}: write heads as 'block:4.attn.head:3', or '.head:-1', '.head:0-3' or '.head:*' after the "
            "attention that they belong to"
        )
    return parsed["attention"], parsed["which"]


def heads_of(tree: ModuleTree, attention: str, which: str, text: str) -> list[Head]:
    """Return heads of an attention.

    Args:
        tree: the model.
        attention: the attention's name.
        which: which heads, such as ``"3"``, ``"-1"``, ``"0-3"`` or ``"*"``.
        text: the signature, for messages.

    Raises:
        LayerNotFound: it has fewer heads, or no known output projection, or nothing says how many heads it has, or
            the projection's width does not confirm that.
    """
    projection = _projection(tree, attention, text)
    width = _width_in(tree.modules[projection])
    if width is None:
        raise LayerNotFound(f"layer {text!r}: the output projection {projection!r} does not say how wide its input is")
    around = list(_around(tree, attention))
    count, head_width = _count_and_width(around, width)
    if not count or count * head_width != width:
        raise LayerNotFound(f"layer {text!r}: {_misfit(attention, projection, width, around)}")
    places = chosen(which, count, text, f"{attention!r} has {count} heads")
    return [Head(place, count, head_width, projection) for place in places]


def _projection(tree: ModuleTree, attention: str, text: str) -> str:
    module = unwrapped(tree.modules[attention])
    it = f"layer {text!r}: {attention!r}, of class {type(module).__name__},"
    if isinstance(module, nn.MultiheadAttention):
        raise LayerNotFound(f"{it} computes heads and the output projection in one function: no layer gets the heads")
    if not _is_attention(module):
        part = part_in_role(tree, attention, "attn")
        raise LayerNotFound(f"{it} is not an attention" + (f": {part!r} is, so write '.attn.head:'" if part else ""))
    named = (f"{attention}.{name}" for name in _PROJECTIONS)
    found = next((name for name in named if name in tree.modules and _width_in(tree.modules[name])), None)
    if found is None:
        children = ", ".join(name[len(attention) + 1 :] for name in tree.children(attention)) or "none"
        raise LayerNotFound(
            f"{it} has no output projection of a known name ({', '.join(_PROJECTIONS[:6])}, ...), and heads are slices "
            f"of its input; its children are: {children}"
        )
    holder = found.rpartition(".")[0]
    return found if holder == attention else _refuse_fused(tree, holder, found, text)


def _refuse_fused(tree: ModuleTree, holder: str, projection: str, text: str) -> str:
    """Return a projection that an inner module of the attention holds, unless that module never calls it."""
    return _projection(tree, holder, text) if isinstance(tree.modules[holder], nn.MultiheadAttention) else projection


def _is_attention(module: nn.Module) -> bool:
    """Return whether a module is an attention: an MLP may have a projection of the same name, and as many channels."""
    classes = "".join(cls.__name__.lower() for cls in type(module).__mro__)
    return "attention" in classes or "attn" in classes or _first_number([module], _COUNTS) is not None


def _width_in(layer: nn.Module) -> int | None:
    """Return how many channels a linear layer takes, also one with an adapter; ``None`` of any other module."""
    layer = unwrapped(layer)
    inside = getattr(layer, "base_layer", None)
    if isinstance(inside, nn.Module):
        return _width_in(inside)
    return _first_number([layer], ("in_features", "nx"))


def _around(tree: ModuleTree, attention: str) -> Iterator[Any]:
    """Yield what may say how many heads an attention has: itself, the modules in it, the nearest configuration."""
    module = unwrapped(tree.modules[attention])
    yield module
    for name in tree.children(attention):
        yield unwrapped(tree.modules[name])
    holders = (module, *tree.ancestors(module))
    configs = (getattr(holder, "config", None) for holder in holders)
    if (config := next((one for one in configs if one is not None), None)) is not None:
        yield config


def _count_and_width(around: Sequence[Any], width: int) -> tuple[int, int]:
    """Return how many heads there are, and how wide each is; the one that is not said follows from the other."""
    count, head_width = _first_number(around, _COUNTS), _first_number(around, _WIDTHS)
    if type(around[0]).__name__.startswith(_SUBTRACTED) and count and head_width:
        count, head_width = count // 2, head_width * 2
    if count is None:
        return width // head_width if head_width else 0, head_width or 0
    return count, head_width if head_width is not None else width // count


def _first_number(objects: Iterable[Any], names: Sequence[str]) -> int | None:
    found = (getattr(one, name, None) for one in objects for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


def _misfit(attention: str, projection: str, width: int, around: Sequence[Any]) -> str:
    count, head_width = _first_number(around, _COUNTS), _first_number(around, _WIDTHS)
    if count is None and head_width is None:
        return (
            f"nothing says how many heads {attention!r} has: neither it, nor what is in it, nor its configuration has "
            f"one of the attributes {', '.join(_COUNTS)}"
        )
    said = " and ".join(
        part for part in (count and f"{count} heads", head_width and f"heads of {head_width} channels") if part
    )
    return (
        f"{attention!r} says that it has {said}, and its output projection {projection!r} takes {width} channels, "
        "which is not as many"
    )
