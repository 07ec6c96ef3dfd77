"""Signatures of layers, and the layers that they mean.

============================  ==================================================================
signature                     means
============================  ==================================================================
``"transformer.h.0.attn"``    that layer
``"h.0.attn"``                the one layer whose name ends in these segments
``"*.mlp"``, ``"h.[0-3]"``    all layers whose last segments match, ``*`` within one segment
``"block:3"``, ``"block:-1"``  a block of the main stack, from the end when negative
``"block:*"``, ``"block:4-8"``  all blocks; blocks 4 to 8, both included
``"block:*.attn"``, ``.mlp``  the attention or the MLP of these blocks, or another role; or a child's name or glob
``"block:*.attn.q_proj"``     layers inside these, by name or glob
``3``, ``"3"``, ``"layer_3"``  the same as ``"block:3"``
``"type:Linear"``             all layers of that class or of one made from it; ``*`` is allowed
============================  ==================================================================
"""

from __future__ import annotations

import difflib
import re
import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from mi_crow_lightning.addressing.main_stack import find_blocks
from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.addressing.roles import part_in_role, roles_of
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["Match", "resolve", "signatures_by_role"]

_BLOCK = re.compile(r"block:(?P<which>\*|-?\d+(-\d+)?)(\.(?P<child>.+))?")
_INDEX = re.compile(r"(layer_)?(?P<index>-?\d+)")


@dataclass(frozen=True)
class Match:
    """A layer that a signature means.

    Attributes:
        name: its clean name.
        module: the layer.
        index: index of the block that it is or lies in; ``None`` outside the main stack, or without one.
    """

    name: str
    module: nn.Module
    index: int | None


def resolve(tree: ModuleTree, signature: str | int) -> list[Match]:
    """Return the layers that ``signature`` means, in the model's order; there is at least one.

    Raises:
        LayerNotFound: no layer fits, or several layers fit a name; the message lists the closest ones, or those.
        TypeError: ``signature`` is neither a string nor an integer.
    """
    if isinstance(signature, bool) or not isinstance(signature, (str, int)):
        raise TypeError(f"layer_signature={signature!r} must be a name such as 'block:*', or the index of a block")
    names = _names(tree, signature)
    blocks = _blocks_if_any(tree)
    return [Match(name, tree.modules[name], _block_index(blocks, name)) for name in names]


def signatures_by_role(tree: ModuleTree) -> dict[str, str]:
    """Return the signature by role of each layer that has one: ``"block:3"``, ``"block:3.attn"``, ``"block:3.mlp"``.

    Norms are left out: a block has several, and only the first has the role.

    The result is empty for a model without a main stack.

    Examples:
        >>> stack = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> signatures_by_role(ModuleTree(stack))
        {'0': 'block:0', '1': 'block:1'}
    """
    found: dict[str, str] = {}
    for index, block in enumerate(_blocks_if_any(tree)):
        found[block] = f"block:{index}"
        parts = roles_of(tree, block)
        found.update({name: f"block:{index}.{role}" for role, name in parts.items() if role != "norm"})
    return found


def _names(tree: ModuleTree, signature: str | int) -> list[str]:
    text = str(signature)
    if isinstance(signature, str) and text in tree.names:
        return [text]
    if text in tree.aliases:
        return [tree.aliases[text]]
    if index := _INDEX.fullmatch(text):
        return [_block(find_blocks(tree), int(index["index"]), signature)]
    if text.startswith("block:"):
        return _by_role(tree, text)
    if text.startswith("type:"):
        return _by_class(tree, text)
    if any(character in text for character in "*?["):
        return _by_glob(tree, text)
    return [_by_suffix(tree, text)]


def _block(blocks: list[str], index: int, signature: str | int) -> str:
    if not -len(blocks) <= index < len(blocks):
        raise LayerNotFound(
            f"layer {signature!r}: the model has {len(blocks)} blocks, 0 to {len(blocks) - 1} (or -1 to -{len(blocks)})"
        )
    return blocks[index]


def _by_role(tree: ModuleTree, text: str) -> list[str]:
    parsed = _BLOCK.fullmatch(text)
    if parsed is None:
        raise LayerNotFound(
            f"layer {text!r}: write 'block:3', 'block:-1', 'block:*' or 'block:4-8', followed by '.attn', '.mlp' or a "
            "child's name if you mean a part of the block"
        )
    blocks = find_blocks(tree)
    chosen = _chosen_blocks(blocks, parsed["which"], text)
    if parsed["child"] is None:
        return chosen
    return _parts(tree, chosen, parsed["child"], text)


def _parts(tree: ModuleTree, blocks: list[str], child: str, text: str) -> list[str]:
    """Return that part of the blocks that have one; warn of those that have none, and refuse if none has."""
    found = {block: _child(tree, block, child) for block in blocks}
    without = [block for block, names in found.items() if not names]
    if len(without) == len(blocks):
        raise LayerNotFound(_no_child(tree, blocks[0], child, text))
    if without:
        some = ", ".join(without[:8]) + (", ..." if len(without) > 8 else "")
        warnings.warn(
            f"layer {text!r}: {len(without)} of {len(blocks)} blocks have no {child!r} and are left out: {some}",
            stacklevel=2,
        )
    return [name for names in found.values() for name in names]


def _by_class(tree: ModuleTree, text: str) -> list[str]:
    wanted = text.removeprefix("type:")
    found = [name for name in tree.names if any(fnmatchcase(cls, wanted) for cls in _classes(tree.modules[name]))]
    if not found:
        classes = dict.fromkeys(type(unwrapped(tree.modules[name])).__name__ for name in tree.names)
        raise LayerNotFound(f"the model has no layer of class {wanted!r}; its classes are: {', '.join(classes)}")
    return found


def _classes(module: nn.Module) -> list[str]:
    """Return the names of a layer's class and its bases: FSDP and parametrizations derive new classes."""
    return [cls.__name__ for cls in type(unwrapped(module)).__mro__ if issubclass(cls, nn.Module) and cls != nn.Module]


def _chosen_blocks(blocks: list[str], which: str, text: str) -> list[str]:
    if which == "*":
        return blocks
    if which.count("-") == 0 or (which.startswith("-") and which.count("-") == 1):
        return [_block(blocks, int(which), text)]
    first, last = (int(part) for part in which.split("-"))
    if first > last:
        raise LayerNotFound(f"layer {text!r}: the range is empty, {first} comes after {last}")
    _block(blocks, last, text)
    return blocks[first : last + 1]


def _child(tree: ModuleTree, block: str, child: str) -> list[str]:
    holder, part = _holder(tree, block, child)
    if not part:
        return [holder]
    pattern = f"{holder}.{part}".split(".")
    return [name for name in tree.names if _matches(name.split("."), pattern)]


def _holder(tree: ModuleTree, block: str, child: str) -> tuple[str, str]:
    """Return the part in the role that ``child`` begins with, else the block, and what is to be found in it."""
    role, _, below = child.partition(".")
    by_role = part_in_role(tree, block, role)
    return (block, child) if by_role is None else (by_role, below)


def _no_child(tree: ModuleTree, block: str, child: str, text: str) -> str:
    holder, part = _holder(tree, block, child)
    children = ", ".join(name[len(holder) + 1 :] for name in tree.children(holder)) or "none"
    roles = f" (and by role: {', '.join(roles_of(tree, block)) or 'none'})" if holder == block else ""
    return f"layer {text!r}: {holder!r} has no child {part!r}; its children are: {children}{roles}"


def _by_glob(tree: ModuleTree, text: str) -> list[str]:
    pattern = text.split(".")
    found = [name for name in tree.names if _matches(name.split(".")[-len(pattern) :], pattern)]
    if not found:
        raise LayerNotFound(
            f"the model has no layer that matches {text!r} ('*' stays within one dotted segment); "
            f"{_closest(tree, text)}"
        )
    return found


def _matches(segments: list[str], pattern: list[str]) -> bool:
    return len(segments) == len(pattern) and all(map(fnmatchcase, segments, pattern))


def _by_suffix(tree: ModuleTree, text: str) -> str:
    wanted = text.split(".")
    found = [name for name in tree.names if name.split(".")[-len(wanted) :] == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(map(repr, found[:6])) + (", ..." if len(found) > 6 else "")
        raise LayerNotFound(
            f"layer {text!r} is ambiguous: {len(found)} names end like this: {some}. "
            f"Give more of the name, or '*.{text}' for all of them."
        )
    raise LayerNotFound(f"the model has no layer {text!r}; {_closest(tree, text)}")


def _closest(tree: ModuleTree, text: str) -> str:
    if ":" in text:
        return "write blocks as 'block:3', 'block:*' or 'block:4-8', and parts as 'block:*.attn' or 'block:*.mlp'"
    depth = text.count(".") + 1
    by_suffix = {".".join(name.split(".")[-depth:]): name for name in reversed(tree.names)}
    close = difflib.get_close_matches(text, [*by_suffix, *tree.names], n=5, cutoff=0.5)
    listed = dict.fromkeys(by_suffix.get(name, name) for name in close)
    if listed:
        return f"closest: {', '.join(map(repr, listed))}"
    return f"it has {len(tree.names)} layers, among them {', '.join(map(repr, tree.names[:6]))}"


def _block_index(blocks: list[str], name: str) -> int | None:
    return next((i for i, block in enumerate(blocks) if name == block or name.startswith(f"{block}.")), None)


def _blocks_if_any(tree: ModuleTree) -> list[str]:
    try:
        return find_blocks(tree)
    except LayerNotFound:
        return []  # a layer addressed by name needs no main stack
