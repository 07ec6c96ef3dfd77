"""The widths that layers declare: how many channels their activations have.

Only what is certain counts: a vector that fits must never be refused. So a class that computes its output itself, and
a block whose norms do not confirm what the configuration says, declare nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from mi_crow_lightning.addressing.layer_classes import LAST, declared
from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.addressing.signatures import Match

__all__ = ["channels_are_last", "declared_width"]


def declared_width(tree: ModuleTree, match: Match, *, of_input: bool = False) -> int | None:
    """Return the width of a layer's output, or of its input; ``None`` where only a run would show it.

    torch's layers declare it, see ``layer_classes.py``. So does a block of a stack, by ``hidden_size`` in the
    configuration around it, if most of the norms in the block have that width: the stages of a hierarchical model
    differ in width, and only the last has that of its configuration.

    Args:
        tree: the model.
        match: the layer.
        of_input: whether the input is meant.

    Examples:
        >>> from mi_crow_lightning.addressing.signatures import resolve
        >>> tree = ModuleTree(nn.Sequential(nn.Linear(2, 8), nn.ReLU()))
        >>> linear, relu = resolve(tree, "*")
        >>> declared_width(tree, linear), declared_width(tree, linear, of_input=True), declared_width(tree, relu)
        (8, 2, None)
    """
    if match.head is not None:
        return match.head.width
    layer = _inside_adapter(unwrapped(match.module))
    found = declared(layer)
    if found is not None and not found.own_forward:
        return (found.width_in if of_input else found.width_out) or None
    if type(layer).__name__ == "Conv1D" and isinstance(width := getattr(layer, "nx" if of_input else "nf", None), int):
        return width  # a linear layer of GPT-2's kin
    return _width_of_norm(layer) or _width_of_block(tree, match)


def channels_are_last(match: Match) -> bool:
    """Return whether a layer that declares its width has it in the last dimension of its activations.

    Examples:
        >>> channels_are_last(Match("", nn.Linear(2, 8), None)), channels_are_last(Match("", nn.Conv1d(2, 8, 3), None))
        (True, False)
    """
    found = declared(_inside_adapter(unwrapped(match.module)))
    return found is None or found.place == LAST


def _inside_adapter(layer: nn.Module) -> nn.Module:
    """Return the layer that a PEFT adapter is around: both have one form."""
    inside = getattr(layer, "base_layer", None)
    return _inside_adapter(inside) if isinstance(inside, nn.Module) else layer


def _width_of_norm(layer: nn.Module) -> int | None:
    return _weights_of_norm(layer) if type(layer).__name__.endswith("RMSNorm") else None


def _weights_of_norm(layer: nn.Module) -> int | None:
    """Return how many features a norm weighs, whichever dimension of its activations that is."""
    weight = getattr(layer, "weight", None)
    if "Norm" not in type(layer).__name__ or not isinstance(weight, nn.Parameter) or is_lazy(weight):
        return None
    return len(weight) if weight.dim() == 1 else None


def _width_of_block(tree: ModuleTree, match: Match) -> int | None:
    if not match.name.rsplit(".", 1)[-1].isdigit():  # not in a list of modules
        return None
    norms = [width for width in map(_weights_of_norm, match.module.modules()) if width is not None]
    size = next(_hidden_sizes(tree, match), None)
    return size if norms and 2 * norms.count(size or 0) >= len(norms) else None


def _hidden_sizes(tree: ModuleTree, match: Match) -> Iterator[int]:
    """Yield the ``hidden_size`` of each configuration around a layer, innermost first."""
    for parent in tree.ancestors(match.module):
        size = getattr(getattr(parent, "config", None), "hidden_size", None)
        if isinstance(size, int):
            yield size
