"""The layers of a live model, as a table: what hooks can be placed on, and by which names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from torch import nn

from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import NAMES, WHOLE, WHOLE_OR_NONE, Table, count, listed_names
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import (
    Signature,
    check_signature,
    resolve,
    signature_of,
    signatures_by_role,
)
from mi_crow_lightning.addressing.sizes import Sizes
from mi_crow_lightning.report.output_shapes import class_at, known_shape_at

__all__ = ["LayerTable", "ModelLayer", "layer_table"]


class ModelLayer(NamedTuple):
    """A layer of a live model.

    Attributes:
        layer: its name.
        block: the block of its stack that it is or lies in; ``None`` outside all stacks.
        role: ``"block"``, or its part in a block: ``"attn"``, ``"mlp"``, ``"cross_attn"``, ``"router"``,
            ``"expert"`` or ``"head"``; ``None`` if it has none of these.
        signature: the signature by role that means it, such as ``"block:3.attn"``; ``None`` if it has no role.
        module: its class.
        parameters: how many numbers its weights have.
        output: the shape of its output if its class determines it, such as ``"(..., 64)"``; else ``None``.
        stack: the stack that it lies in, by name; ``None`` outside all stacks.
    """

    layer: str
    block: int | None
    role: str | None
    signature: str | None
    module: str
    parameters: int
    output: str | None = None
    stack: str | None = None


class LayerTable(Table[ModelLayer]):
    """Layers of a live model: a list of `ModelLayer`.

    ``to_pandas()`` has the columns ``block``, ``layer``, ``role``, ``signature``, ``module``, ``parameters``,
    ``output`` and ``stack``.
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "layer": NAMES,
        "role": NAMES,
        "signature": NAMES,
        "module": NAMES,
        "parameters": WHOLE,
        "output": NAMES,
        "stack": NAMES,
    }
    _left_out: ClassVar[tuple[str, ...]] = ("role", "stack")

    def summary(self) -> str:
        """Return how many layers and blocks there are, and the roles that layers have, in one line."""
        blocks = len({(row.stack, row.block) for row in self if row.block is not None})
        roles = listed_names((row.role for row in self if row.role is not None), most=6)
        return f"{count(len(self), 'layer')}, {count(blocks, 'block')}{f', roles {roles}' if roles else ''}"


def layer_table(model: nn.Module, pattern: Signature | None = None) -> LayerTable:
    """Return the layers of a model that hooks can be placed on, in its order; nothing is run.

    Args:
        model: the model, or a LightningModule; layer names are relative to it.
        pattern: only the layers that this signature, or list of signatures, means, as a hook's ``layer_signature``.

    Raises:
        TypeError, ValueError: ``model`` is not a module, or ``pattern`` not a signature.
        LayerNotFound: ``pattern`` means no layer; the message lists the closest ones.

    Examples:
        >>> table = layer_table(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)))
        >>> table
        <2 layers, 2 blocks, roles block>
        >>> print(table)
        2 layers, 2 blocks, roles block
        <BLANKLINE>
        block  layer  signature  module  parameters  output
            0  0      block:0    Linear          40  (..., 8)
            1  1      block:1    Linear          36  (..., 4)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={shown(model)} must be an nn.Module, such as a LightningModule")
    if pattern is not None:
        try:
            check_signature(pattern)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("layer_signature", "pattern")) from None
    return LayerTable(_layers(ModuleTree(model), pattern))


def _layers(tree: ModuleTree, pattern: Signature | None) -> Iterator[ModelLayer]:
    if pattern is None and not tree.names:
        return
    signatures, sizes = signatures_by_role(tree), Sizes(tree)
    for match in resolve(tree, "*" if pattern is None else pattern):
        signature = signature_of(match, signatures)
        yield ModelLayer(
            layer=match.name,
            block=match.index,
            role=None if signature is None else _role(signature),
            signature=signature,
            module=class_at(match),
            parameters=0 if match.head is not None else sizes.of(match.name),
            output=known_shape_at(match),
            stack=match.stack,
        )


def _role(signature: str) -> str:
    """Return the role of a signature by role.

    Examples:
        >>> _role("block:3"), _role("encoder.block:3.cross_attn"), _role("block:3.attn.head:1")
        ('block', 'cross_attn', 'head')
    """
    return "head" if ".head:" in signature else signature.rpartition("block:")[2].partition(".")[2] or "block"
