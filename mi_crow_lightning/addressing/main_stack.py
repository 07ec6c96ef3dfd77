"""Finding the main stack: the list of blocks that a model runs through.

The longest list will not do: lists of experts are longer, an encoder and a decoder are equally long, and a teacher
stands beside its student. So a stack must be recognisable, and it must be the only one.
"""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.parameter import is_lazy

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["find_blocks"]

_GENERAL_PACKAGES = ("torch", "lightning", "pytorch_lightning")


def find_blocks(tree: ModuleTree) -> list[str]:
    """Return the clean names of the blocks of the main stack, in order.

    The main stack is a ``ModuleList`` or ``Sequential`` of at least two children that are kin (of one class, of a
    shared base, or all called a layer or a block), which holds attention or most of the parameters and does not lie
    inside another such list. If several lists hold blocks of these classes, as the stages of a ResNet do, none of them
    is the main stack. If a model has no such list but is a plain
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
        "the model has no stack of blocks (a ModuleList or Sequential of two or more modules of one kind that "
        f"holds attention or most of the parameters). Name the layers instead; its children are: "
        f"{', '.join(tree.children('')) or 'none'}"
    )


def _stacks(tree: ModuleTree) -> list[str]:
    lists = {name: classes for name, module in tree.modules.items() if (classes := _classes_of_blocks(module))}
    half = _size(tree.root) / 2
    main = frozenset[type[nn.Module]]().union(
        *(
            classes
            for name, classes in lists.items()
            if _holds_attention(tree.modules[name]) or _size(tree.modules[name]) > half
        )
    )
    return [name for name, classes in lists.items() if classes & main]


def _classes_of_blocks(module: nn.Module) -> frozenset[type[nn.Module]]:
    """Return the classes of the children of a list of two or more that are kin; none for any other module.

    Its places may hold ``None``, as torch allows.
    """
    module = unwrapped(module)
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return frozenset()
    children = list(module.children())
    classes = frozenset(type(unwrapped(child)) for child in children)
    return classes if len(children) > 1 and _are_kin(classes) else frozenset()


def _are_kin(classes: frozenset[type[nn.Module]]) -> bool:
    """Return whether blocks of these classes make one stack.

    They do if they are one class, share a base that is made for blocks, or are all called a layer or a block. A hybrid
    model alternates such classes, e.g. attention and a state space.
    """
    if len(classes) == 1:
        return True
    shared = set.intersection(*(set(cls.__mro__) for cls in classes))
    if any(issubclass(base, nn.Module) and not _is_general(base) for base in shared):
        return True
    return all(cls.__name__.endswith(("Layer", "Block")) for cls in classes)


def _is_general(base: type) -> bool:
    """Return whether a base class says nothing about blocks: those of torch and Lightning, and that of whole models."""
    return base.__module__.split(".")[0] in _GENERAL_PACKAGES or base.__name__ == "PreTrainedModel"


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
    counts = Counter(type(unwrapped(child)).__name__ for child in unwrapped(stack).children())
    return " + ".join(f"{count} x {name}" for name, count in counts.items())
