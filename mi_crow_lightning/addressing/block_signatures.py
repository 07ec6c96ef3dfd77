"""Signatures of blocks and of their parts: ``"block:3"``, ``"block:*.attn"``, ``"encoder.block:4-8.mlp.*"``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from mi_crow_lightning.addressing.counted import WHICH, chosen, index_at
from mi_crow_lightning.addressing.main_stack import find_stack
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.roles import part_in_role, roles_of, shared_part
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["block_at", "is_of_blocks", "layers_of_blocks", "some"]

_BLOCK = re.compile(rf"((?P<stack>[^:]+)\.)?block:(?P<which>{WHICH})(\.(?P<child>.+))?")


def is_of_blocks(text: str) -> bool:
    """Return whether a signature is meant to be one of blocks."""
    return text.startswith("block:") or ".block:" in text


def block_at(blocks: list[str], index: int, signature: str | int) -> str:
    """Return the block of an index, from the end if it is negative.

    Raises:
        LayerNotFound: there are fewer blocks.
    """
    return blocks[index_at(index, len(blocks), signature, f"the model has {len(blocks)} blocks")]


def layers_of_blocks(tree: ModuleTree, text: str, note: Callable[[str], None]) -> tuple[list[str], str]:
    """Return the names of the layers that a signature of blocks means, and the name of their stack.

    Args:
        tree: the model.
        text: the signature.
        note: is called with the blocks that are left out, if some lack the part.

    Raises:
        LayerNotFound: it is written wrongly, or the model has no such stack, block or part.
    """
    parsed = _BLOCK.fullmatch(text)
    if parsed is None:
        raise LayerNotFound(
            f"layer {text!r}: write 'block:3', 'block:-1', 'block:*' or 'block:4-8', followed by '.attn', '.mlp' or a "
            "child's name if you mean a part of the block. A prefix says which stack: 'encoder.block:3'"
        )
    stack = find_stack(tree, parsed["stack"])
    blocks = tree.children(stack)
    places = chosen(parsed["which"], len(blocks), text, f"the model has {len(blocks)} blocks")
    of_blocks = [blocks[place] for place in places]
    return (of_blocks if parsed["child"] is None else _parts(tree, of_blocks, parsed["child"], text, note)), stack


def _parts(tree: ModuleTree, blocks: list[str], child: str, text: str, note: Callable[[str], None]) -> list[str]:
    """Return that part of the blocks that have one; note those that have none, and refuse if none has."""
    found = {block: _child(tree, block, child) for block in blocks}
    lacking = [block for block, names in found.items() if not names]
    if len(lacking) == len(blocks):
        raise LayerNotFound(_no_child(tree, blocks[0], child, text))
    sharing = [block for block in lacking if shared_part(tree, block, child.partition(".")[0]) is not None]
    without = [block for block in lacking if block not in sharing]
    if without:
        count = f"{len(without)} of {len(blocks)} blocks"
        note(f"layer {text!r}: {count} have no {child!r} and are left out: {some(without)}")
    if sharing:
        note(f"layer {text!r}: {child!r} is one layer in several blocks, and counts once: also in {some(sharing)}")
    return [name for names in found.values() for name in names]


def some(names: Sequence[str]) -> str:
    """Return the first eight names as text."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _child(tree: ModuleTree, block: str, child: str) -> list[str]:
    holder, part = _holder(tree, block, child)
    found = [holder]
    for segment in part.split(".") if part else ():
        children = (name for parent in found for name in tree.children(parent))
        found = [name for name in children if fnmatchcase(name.rpartition(".")[2], segment)]
    return found


def _holder(tree: ModuleTree, block: str, child: str) -> tuple[str, str]:
    """Return the part in the role that ``child`` begins with, else the block, and what is to be found in it."""
    role, _, below = child.partition(".")
    by_role = part_in_role(tree, block, role)
    return (block, child) if by_role is None else (by_role, below)


def _no_child(tree: ModuleTree, block: str, child: str, text: str) -> str:
    holder, part = _holder(tree, block, child)
    children = ", ".join(name[len(holder) + 1 :] for name in tree.children(holder)) or "none"
    roles = f" (and by role: {', '.join(roles_of(tree, block)) or 'none'})" if holder == block else ""
    shared = shared_part(tree, block, child.partition(".")[0])
    if shared is not None:
        return f"layer {text!r}: {block!r} shares this layer with an earlier block: write {shared!r} to hook both"
    return f"layer {text!r}: {holder!r} has no child {part!r}; its children are: {children}{roles}"
