"""Finding the main stack: the list of blocks that a model runs through.

The longest list will not do: experts of a mixture are longer, an encoder and a decoder tie, a teacher
stands beside its student. So a stack must be recognisable, and there must be only one.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["find_blocks"]


def find_blocks(tree: ModuleTree) -> list[str]:
    """Clean names of the blocks of the main stack, in order.

    The main stack is a ``ModuleList`` or ``Sequential`` of at least two children of one class that holds
    attention or most of the parameters, and does not lie in another such. Where other lists hold blocks of
    that class, as the stages of a ResNet do, none is the main one. A model without any that is a plain
    ``Sequential`` counts its children.

    Raises:
        LayerNotFound: there is no such stack, or more than one.
    """
    stacks = _outermost(_stacks(tree))
    if len(stacks) == 1:
        return tree.children(stacks[0])
    if stacks:
        listed = "\n".join(f"  {name!r}: {_describe(tree.modules[name])}" for name in stacks)
        raise LayerNotFound(
            f"the model has {len(stacks)} stacks of blocks, so a block's index is ambiguous:\n{listed}\n"
            f"Name the layers, e.g. '{stacks[0]}.*', or choose one model with root=..."
        )
    sequential = _plain_sequential(tree)
    if sequential is not None:
        return tree.children(sequential)
    raise LayerNotFound(
        "the model has no stack of blocks (a ModuleList or Sequential of two or more modules of one class that "
        f"holds attention or most of the parameters). Name the layers instead; its children are: "
        f"{', '.join(tree.children('')) or 'none'}"
    )


def _stacks(tree: ModuleTree) -> list[str]:
    lists = {name: kind for name, module in tree.modules.items() if (kind := _kind_of_children(module)) is not None}
    half = _size(tree.root) / 2
    main = {
        kind for name, kind in lists.items() if _holds_attention(tree.modules[name]) or _size(tree.modules[name]) > half
    }
    return [name for name, kind in lists.items() if kind in main]


def _kind_of_children(module: nn.Module) -> type[nn.Module] | None:
    """The class of which all children of a list of two or more are."""
    module = unwrapped(module)
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
        return None
    kinds = {type(unwrapped(child)) for child in module}
    return kinds.pop() if len(kinds) == 1 else None


def _holds_attention(module: nn.Module) -> bool:
    return any("attention" in type(m).__name__.lower() or "attn" in type(m).__name__.lower() for m in module.modules())


def _size(module: nn.Module) -> int:
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in module.parameters())


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name != other and _lies_in(name, other) for other in names)]


def _lies_in(name: str, other: str) -> bool:
    return other == "" or name.startswith(f"{other}.")


def _plain_sequential(tree: ModuleTree) -> str | None:
    """The root if it is a ``Sequential``, or its only child with parameters if that is one."""
    if isinstance(unwrapped(tree.root), nn.Sequential):
        return ""
    holding = [name for name in tree.children("") if _size(tree.modules[name]) > 0]
    if len(holding) == 1 and isinstance(unwrapped(tree.modules[holding[0]]), nn.Sequential):
        return holding[0]
    return None


def _describe(stack: nn.Module) -> str:
    children = list(unwrapped(stack).children())
    return f"{len(children)} x {type(unwrapped(children[0])).__name__}"
