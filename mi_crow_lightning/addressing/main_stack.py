"""Finding the stacks of a model, the lists of blocks that it runs through, and the main one among them.

The longest list will not do: lists of experts are longer, an encoder and a decoder are equally long, and a teacher
stands beside its student. So a stack must be recognisable, and the main one must be the only one, or a prefix chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree, holders_of, unwrapped
from mi_crow_lightning.addressing.sizes import Sizes, size_of
from mi_crow_lightning.addressing.stack_names import is_text, language_model, prefix_of, stacks_of_prefix
from mi_crow_lightning.errors import LayerNotFound

__all__ = ["blocks_of", "find_blocks", "find_stack", "places_of_blocks", "stacks_by_prefix", "stacks_of"]

_GENERAL_PACKAGES = ("torch", "lightning", "pytorch_lightning")
_NAMES_OF_BLOCKS = ("Layer", "Block")

# A tree does not change.
_found: WeakKeyDictionary[ModuleTree, list[str]] = WeakKeyDictionary()
_main: WeakKeyDictionary[ModuleTree, str | None] = WeakKeyDictionary()
_places: WeakKeyDictionary[ModuleTree, dict[str, tuple[int, str]]] = WeakKeyDictionary()


def find_blocks(tree: ModuleTree, prefix: str | None = None) -> list[str]:
    """Return the clean names of the blocks of a stack, in order; see `find_stack`."""
    return tree.children(find_stack(tree, prefix))


def find_stack(tree: ModuleTree, prefix: str | None = None) -> str:
    """Return the clean name of a stack, the list of blocks that a model runs through.

    A stack is a ``ModuleList`` or ``Sequential`` of at least two children that are kin (of one class, of a shared
    base, or all called a layer or a block), which does not lie inside another one. It holds attention or most of the
    parameters; or its blocks are called layers or blocks, and its configuration counts as many of them or its name
    says that it is a text's. If several lists hold blocks of these classes, as the stages of a ResNet do, each is a
    stack.

    Args:
        tree: the model.
        prefix: which stack: a prefix of `stack_names`, or a part of its name. ``None`` for the main stack: the only
            one, or that of a language model that all the others feed. If a model has no stack but is a plain
            ``Sequential``, its children are the blocks.

    Raises:
        LayerNotFound: there is no such stack, or there are several; the message lists the stacks.
    """
    if prefix is not None:
        return _stack_of_prefix(tree, prefix)
    main = _main_stack(tree)
    if main is not None:
        return main
    if stacks := _stacks(tree):
        raise LayerNotFound(
            f"the model has {len(stacks)} stacks of blocks, so a block's index is ambiguous. Say which one you mean:\n"
            f"{_listed(tree, stacks)}\nOr choose one of the models with root=..."
        )
    raise LayerNotFound(
        "the model has no stack of blocks (a ModuleList or Sequential of two or more modules of one kind that "
        f"holds attention or most of the parameters). Name the layers instead; its children are: "
        f"{', '.join(tree.children('')) or 'none'}"
    )


def stacks_by_prefix(tree: ModuleTree) -> dict[str, str]:
    """Return the names of all stacks, each with the prefix that means it; the main stack's is empty."""
    main, stacks = _main_stack(tree), _stacks(tree)
    others = {stack: prefix_of(stack, stacks) for stack in stacks if stack != main}
    return others if main is None else {main: "", **others}


def stacks_of(tree: ModuleTree) -> list[str]:
    """Return the names of all stacks, the main one first if there is one."""
    main, stacks = _main_stack(tree), _stacks(tree)
    return stacks if main is None else [main, *(stack for stack in stacks if stack != main)]


def blocks_of(tree: ModuleTree, stack: str) -> dict[str, tuple[int, str]]:
    """Return the blocks of a stack by name, each with its index and the stack."""
    return {block: (index, stack) for index, block in enumerate(tree.children(stack))}


def places_of_blocks(tree: ModuleTree) -> dict[str, tuple[int, str]]:
    """Return the blocks of all stacks, see `blocks_of`."""
    if tree not in _places:
        _places[tree] = {block: place for stack in stacks_of(tree) for block, place in blocks_of(tree, stack).items()}
    return _places[tree]


def _main_stack(tree: ModuleTree) -> str | None:
    if tree not in _main:
        _main[tree] = _find_main_stack(tree)
    return _main[tree]


def _find_main_stack(tree: ModuleTree) -> str | None:
    stacks = _stacks(tree)
    if not stacks:
        return _plain_sequential(tree)
    if len(stacks) == 1:
        return stacks[0]
    return language_model(stacks, [stack for stack in stacks if _decodes(tree.modules[stack])])


def _stack_of_prefix(tree: ModuleTree, prefix: str) -> str:
    stacks = _stacks(tree)
    fitting = stacks_of_prefix(stacks, prefix)
    if not fitting:  # another list of blocks, such as that of a stage inside a stack
        lists = [name for name, module in tree.modules.items() if _classes_of_blocks(module, least=1)]
        fitting = _outermost(stacks_of_prefix(lists, prefix))
    if len(fitting) == 1:
        return fitting[0]
    what = f"fits {len(fitting)} stacks of blocks" if fitting else "means none of the model's stacks of blocks"
    known = f"Write one of these:\n{_listed(tree, fitting or stacks)}" if stacks else "The model has none."
    raise LayerNotFound(f"'{prefix}.block:' {what}. {known}")


def _listed(tree: ModuleTree, stacks: Sequence[str]) -> str:
    known = _stacks(tree)
    prefixes = {stack: prefix_of(stack, known) if stack in known else stack for stack in stacks}
    return "\n".join(
        f"  '{prefix}.block:*' for {stack!r}: {_describe(tree.modules[stack])}" for stack, prefix in prefixes.items()
    )


def _stacks(tree: ModuleTree) -> list[str]:
    if tree not in _found:
        _found[tree] = _find_stacks(tree)
    return _found[tree]


def _find_stacks(tree: ModuleTree) -> list[str]:
    named = [name for name, module in tree.modules.items() if module._modules and _is_list(unwrapped(module))]
    lists = {name: classes for name in named if (classes := _classes_of_blocks(tree.modules[name]))}
    attention, counted = _with_attention(tree), {name for name in named if _is_counted(tree, name)}
    sure = {name for name in named if name in counted or (name in lists and name in attention)}
    found = _outermost([name for name in named if name in sure])
    if all(not sure.isdisjoint((name, *holders_of(name))) for name in lists):
        return found  # as of most models: what the other lists hold does not matter
    main = _large(tree, lists).union(*(lists[name] for name in lists if name in sure))
    return _outermost([name for name in named if name in sure or not main.isdisjoint(lists.get(name, ()))])


def _large(tree: ModuleTree, lists: Mapping[str, frozenset[type[nn.Module]]]) -> frozenset[type[nn.Module]]:
    """Return the classes of blocks whose lists hold most of the parameters."""
    of_layers = Sizes(tree)
    sizes: Counter[frozenset[type[nn.Module]]] = Counter()
    for name, classes in lists.items():
        sizes[classes] += of_layers.of(name)
    half = of_layers.of("") / 2
    return frozenset[type[nn.Module]]().union(*(classes for classes, size in sizes.items() if size > half))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential))


def _classes_of_blocks(module: nn.Module, least: int = 2) -> frozenset[type[nn.Module]]:
    """Return the classes of the children of a list that are kin; none for any other module, or for fewer children.

    Its places may hold ``None``, as torch allows. Children that are lists themselves are not blocks: nothing calls
    them.
    """
    module = unwrapped(module)
    if not _is_list(module):
        return frozenset()
    children = list(module.children())
    classes = frozenset(type(unwrapped(child)) for child in children)
    lists = any(issubclass(cls, nn.ModuleList) and cls.forward is nn.Module.forward for cls in classes)
    return classes if len(children) >= least and not lists and _are_kin(classes) else frozenset()


def _is_counted(tree: ModuleTree, name: str) -> bool:
    """Return whether a list holds what is called layers or blocks, as many as the configuration of its holder says.

    So state spaces and linear attention make a stack beside large embeddings, and so does a single block. In a text's
    model no configuration needs to say it.
    """
    classes = _classes_of_blocks(tree.modules[name], least=1)
    if not classes or not all(cls.__name__.endswith(_NAMES_OF_BLOCKS) for cls in classes):
        return False
    holder = tree.modules.get(name.rpartition(".")[0], tree.root)
    count = getattr(getattr(unwrapped(holder), "config", None), "num_hidden_layers", None)
    return is_text(name) or len(list(unwrapped(tree.modules[name]).children())) == count


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
    return all(cls.__name__.endswith(_NAMES_OF_BLOCKS) for cls in classes)


def _is_general(base: type) -> bool:
    """Return whether a base class says nothing about blocks: those of torch and Lightning, and that of whole models."""
    return base.__module__.split(".")[0] in _GENERAL_PACKAGES or base.__name__ == "PreTrainedModel"


def _with_attention(tree: ModuleTree) -> set[str]:
    """Return the names of attention, and of all that holds some under one of its names."""
    classes = {type(module) for module, _ in tree.first_names()}
    meant = {cls for cls in classes if "attention" in cls.__name__.lower() or "attn" in cls.__name__.lower()}
    first = {name for module, name in tree.first_names() if type(module) in meant}
    names = [*first, *(alias for alias, name in tree.aliases.items() if name in first)]
    return {holder for name in names for holder in (name, *holders_of(name))}


def _outermost(names: list[str]) -> list[str]:
    known = set(names)
    return [name for name in names if known.isdisjoint(holders_of(name))]


def _plain_sequential(tree: ModuleTree) -> str | None:
    """Return the root if it is a ``Sequential``, else its only child with parameters if that is one."""
    if isinstance(unwrapped(tree.root), nn.Sequential):
        return ""
    holding = [name for name in tree.children("") if size_of(tree.modules[name]) > 0]
    if len(holding) == 1 and isinstance(unwrapped(tree.modules[holding[0]]), nn.Sequential):
        return holding[0]
    return None


def _decodes(stack: nn.Module) -> bool:
    return all("Decoder" in type(unwrapped(block)).__name__ for block in unwrapped(stack).children())


def _describe(stack: nn.Module) -> str:
    counts = Counter(type(unwrapped(child)).__name__ for child in unwrapped(stack).children())
    return " + ".join(f"{count} x {name}" for name, count in counts.items())
