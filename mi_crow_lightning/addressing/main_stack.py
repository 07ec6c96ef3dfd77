"""Finding the main stack: the list of blocks that a model runs through.

The longest list will not do: lists of experts are longer, an encoder and a decoder are equally long, and a teacher
stands beside its student. So a stack must be recognisable, and it must be the only one.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["find_blocks"]


def find_blocks(tree: ModuleTree) -> list[str]:
    """Return the clean names of the blocks of the main stack, in order.

    The main stack is a ``ModuleList`` or ``Sequential`` of at least two children of one class, which holds attention
    or most of the parameters and does not lie inside another such list. If several lists hold blocks of that class,
    as the stages of a ResNet do, none of them is the main stack. If a model has no such list but is a plain
    ``Sequential``, its children are the blocks.

    Raises:
        LayerNotFound: there is no main stack, or there are several.
    """
    stacks = _outermost(_stacks(tree))
    if len(stacks) == 1:
        return tree.children(stacks[0])
    if stacks:
        listed = "\n".join(f"  {name!r}: {_describe(tree.modules[name])}" for name in stacks)
        raise LayerNotFound(
            f"the model has {len(stacks)} stacks of blocks, so a block's index is ambiguous:\n{listed}\n"
            f"Name the layers, e.g. '{stacks[0]}.*', or choose one of the models with root=..."
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
    """Return the class that all children of a list of two or more share."""
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
    """Return the root if it is a ``Sequential``, else its only child with parameters if that is one."""
    if isinstance(unwrapped(tree.root), nn.Sequential):
        return ""
    holding = [name for name in tree.children("") if _size(tree.modules[name]) > 0]
    if len(holding) == 1 and isinstance(unwrapped(tree.modules[holding[0]]), nn.Sequential):
        return holding[0]
    return None


def _describe(stack: nn.Module) -> str:
    children = list(unwrapped(stack).children())
    return f"{len(children)} x {type(unwrapped(children[0])).__name__}"
