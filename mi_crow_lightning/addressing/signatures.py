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
``"block:4.attn.head:3"``     a head of this attention; ``head:-1``, ``head:0-3`` and ``head:*`` as with blocks
``"encoder.block:*.attn"``    the same in another stack, by a prefix of `PREFIXES` or a part of the stack's own name
``3``, ``"3"``, ``"layer_3"``  the same as ``"block:3"``
``"type:Linear"``             all layers of that class or of one made from it; ``*`` is allowed
============================  ==================================================================

Containers that nothing calls, such as ``nn.ModuleList``, are left out where a pattern matches other layers as well.
Several signatures in a list mean the layers of all of them, each once.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.block_signatures import block_at, is_of_blocks, layers_of_blocks, some
from mi_crow_lightning.addressing.heads import Head, attention_and_heads, heads_of, is_of_heads
from mi_crow_lightning.addressing.main_stack import (
    blocks_of,
    find_blocks,
    places_of_blocks,
    stacks_by_prefix,
    stacks_of,
)
from mi_crow_lightning.addressing.module_tree import ModuleTree, can_be_called, unwrapped
from mi_crow_lightning.addressing.roles import roles_of
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["Match", "Signature", "check_signature", "of_one_hook", "resolve", "signature_of", "signatures_by_role"]

Signature: TypeAlias = str | int | Sequence[str | int]
"""A signature, or several."""

_LONGEST = 1000  # characters of a layer's name
_LAST_INDEX = 2**63 - 1
_INDEX = re.compile(r"(layer_)?(?P<index>-?\d+)")


@dataclass(frozen=True)
class Match:
    """A layer that a signature means, or a head of an attention.

    Attributes:
        name: its clean name; a head's is that of its attention, and ``head:`` with its index.
        module: the layer; of a head, the output projection of its attention.
        index: index, within its stack, of the block that it is or lies in; ``None`` outside all stacks.
        stack: name of the stack that it lies in; ``None`` outside all stacks.
        head: the head; ``None`` for a layer.
    """

    name: str
    module: nn.Module
    index: int | None
    stack: str | None = field(default=None, compare=False)
    head: Head | None = None

    @property
    def module_name(self) -> str:
        """The clean name of ``module``."""
        return self.name if self.head is None else self.head.projection

    @property
    def head_index(self) -> int:
        """The index of the head; -1 of a layer."""
        return -1 if self.head is None else self.head.index


def check_signature(signature: object) -> None:
    """Refuse what is neither a signature nor a list of some.

    Raises:
        TypeError: it is of another type, or a list holds something else.
        ValueError: it is an empty list, or too long.
    """
    several = isinstance(signature, (list, tuple))
    parts = list(signature) if several else [signature]  # type: ignore[call-overload]
    if not parts:
        raise ValueError(f"layer_signature={shown(signature)} names no layer: 'block:*' means every block")
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            held = (
                f"layer_signature={shown(signature)} holds {shown(part)}, which"
                if several
                else f"layer_signature={shown(part)}"
            )
            raise TypeError(
                f"{held} must be a name such as 'block:*' or 'block:4-8', or the index of a block; or give a list of "
                "these"
            )
        if (isinstance(part, str) and len(part) > _LONGEST) or (isinstance(part, int) and abs(part) > _LAST_INDEX):
            raise ValueError(f"layer_signature={shown(part)} is too long to be a layer's name, or the index of a block")


def resolve(
    tree: ModuleTree, signature: Signature, note: Callable[[str], None] | None = None, *, containers: bool = False
) -> list[Match]:
    """Return the layers that ``signature`` means, in the model's order, each once; there is at least one.

    Args:
        tree: the model.
        signature: a signature, or a list of signatures.
        note: is called with what the user should know: that blocks are left out because they lack a part, or that
            several of the signatures mean the same layers.
        containers: whether a pattern also means containers that nothing calls, beside other layers.

    Raises:
        LayerNotFound: no layer fits one of the signatures, or several layers fit a name; the message lists the closest
            ones, or those.
        TypeError, ValueError: ``signature`` is not a string, an integer, or a list of these.
    """
    check_signature(signature)
    parts = [signature] if isinstance(signature, (str, int)) else signature
    groups = [_matches_of(tree, one, note or _ignore, containers) for one in parts]
    counts = Counter(match.name for group in groups for match in group)
    if (repeated := [name for name, count in counts.items() if count > 1]) and note is not None:
        note(
            f"layers {list(parts)!r}: {len(repeated)} of {len(counts)} layers fit several of these signatures and "
            f"count once: {some(repeated)}"
        )
    by_name = {match.name: match for group in groups for match in group}
    return sorted(by_name.values(), key=lambda match: (tree.places[match.module_name], match.head_index))


def of_one_hook(matches: Sequence[Match]) -> list[Match]:
    """Return the layers of one hook: without indices if they lie in several stacks, where numbers are ambiguous.

    Examples:
        >>> both = [Match("encoder.0", nn.ReLU(), 0, "encoder"), Match("decoder.0", nn.ReLU(), 0, "decoder")]
        >>> [[match.index for match in of_one_hook(matches)] for matches in (both, both[:1])]
        [[None, None], [0]]
    """
    stacks = {match.stack for match in matches if match.stack is not None}
    return [replace(match, index=None) for match in matches] if len(stacks) > 1 else list(matches)


def signatures_by_role(tree: ModuleTree) -> dict[str, str]:
    """Return the signature by role of each layer that has one: ``"block:3"``, ``"block:3.attn"``, ``"block:3.mlp"``.

    Layers of a stack beside the main one have a prefix: ``"encoder.block:3"``. Norms are left out: a block has
    several, and only the first has the role. The result is empty for a model without a stack.

    Examples:
        >>> stack = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> signatures_by_role(ModuleTree(stack))
        {'0': 'block:0', '1': 'block:1'}
    """
    found: dict[str, str] = {}
    for stack, prefix in stacks_by_prefix(tree).items():
        for index, block in enumerate(tree.children(stack)):
            found[block] = signature = f"{prefix}.block:{index}".removeprefix(".")
            parts = roles_of(tree, block)
            found.update({name: f"{signature}.{role}" for role, name in parts.items() if role != "norm"})
    return found


def signature_of(match: Match, roles: Mapping[str, str]) -> str | None:
    """Return the signature by role of a layer, or of a head; ``None`` if it has no role.

    Args:
        match: the layer.
        roles: those of `signatures_by_role`.

    Examples:
        >>> head = Match("h.3.attn.head:1", nn.Linear(32, 32), 3, head=Head(1, 4, 8, "h.3.attn.o_proj"))
        >>> signature_of(head, {"h.3.attn": "block:3.attn"})
        'block:3.attn.head:1'
    """
    if match.head is None:
        return roles.get(match.name)
    of_attention, _, index = match.name.rpartition(".head:")
    return f"{roles[of_attention]}.head:{index}" if of_attention in roles else None


def _matches_of(tree: ModuleTree, signature: str | int, note: Callable[[str], None], containers: bool) -> list[Match]:
    text, places = str(signature), places_of_blocks(tree)
    if is_of_heads(text) and not _is_name(tree, signature):
        return list(_heads(tree, text, note))
    if not _is_name(tree, signature) and is_of_blocks(text):
        names, stack = layers_of_blocks(tree, text, note)
        places = places if stack in stacks_of(tree) else places | blocks_of(tree, stack)
    else:
        names = _names(tree, signature)
    if not containers:  # alone they stay, and whoever needs a call refuses them
        names = [name for name in names if can_be_called(tree.modules[name])] or names
    return [Match(name, tree.modules[name], *_place(places, name)) for name in names]


def _heads(tree: ModuleTree, text: str, note: Callable[[str], None]) -> Iterator[Match]:
    attention, which = attention_and_heads(text)
    for of in _matches_of(tree, attention, note, containers=False):
        for head in heads_of(tree, of.name, which, text):
            name = f"{of.name}.head:{head.index}"
            yield Match(name, tree.modules[head.projection], of.index, of.stack, head)


def _is_name(tree: ModuleTree, signature: str | int) -> bool:
    return isinstance(signature, str) and (signature in tree.modules or signature in tree.aliases) and signature != ""


def _names(tree: ModuleTree, signature: str | int) -> list[str]:
    text = str(signature)
    if _is_name(tree, signature):
        return [tree.aliases.get(text, text)]
    if index := _INDEX.fullmatch(text):
        return [block_at(find_blocks(tree), int(index["index"]), signature)]
    if text.startswith("type:"):
        return _by_class(tree, text)
    if any(character in text for character in "*?["):
        return _by_glob(tree, text)
    return [_by_suffix(tree, text)]


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


def _by_glob(tree: ModuleTree, text: str) -> list[str]:
    pattern = text.split(".")
    last = pattern[-1]
    candidates = tree.names if any(character in last for character in "*?[") else tree.ending_in(last)
    found = [name for name in candidates if _matches(name.split(".")[-len(pattern) :], pattern)]
    if not found:
        raise LayerNotFound(
            f"the model has no layer that matches {text!r} ('*' stays within one dotted segment); "
            f"{_closest(tree, text)}"
        )
    return found


def _matches(segments: list[str], pattern: list[str]) -> bool:
    return len(segments) == len(pattern) and all(map(fnmatchcase, segments, pattern))


def _by_suffix(tree: ModuleTree, text: str) -> str:
    candidates = tree.ending_in(text.rpartition(".")[2])
    found = [name for name in candidates if name == text or name.endswith(f".{text}")]
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


def _place(places: Mapping[str, tuple[int, str]], name: str) -> tuple[int, str] | tuple[None, None]:
    """Return the index and the stack of the block that a layer is or lies in."""
    while name and name not in places:
        name = name.rpartition(".")[0]
    return places.get(name, (None, None))


def _ignore(text: str) -> None:
    """Do nothing with a note."""
