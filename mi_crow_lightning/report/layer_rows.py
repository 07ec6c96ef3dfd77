"""The layers of a model as a table: names, the signatures by role that match them, sizes and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mi_crow_lightning._text_table import text_table
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve, signature_of, signatures_by_role
from mi_crow_lightning.addressing.sizes import Sizes
from mi_crow_lightning.report.output_shapes import class_at

__all__ = ["LayerRow", "layer_rows", "layers_as_text"]


@dataclass(frozen=True)
class LayerRow:
    """A layer of a model.

    Attributes:
        name: its name.
        role: the signature by role that matches it, such as ``"block:3.attn"``, if there is one.
        index: the block of its stack that it is or lies in; ``None`` outside all stacks.
        module: its class.
        parameters: how many numbers its weights have.
        output_shape: the shape of its output in a tiny pass; ``None`` if that is not known.
    """

    name: str
    role: str | None
    index: int | None
    module: str
    parameters: int
    output_shape: tuple[int, ...] | None = None


def layer_rows(model: nn.Module, signature: str | None = None) -> list[LayerRow]:
    """Return the layers of a model, in its order, without shapes.

    Args:
        model: layer names are relative to it.
        signature: only the layers that it matches.

    Raises:
        LayerNotFound: ``signature`` matches no layer.

    Examples:
        >>> [row.role for row in layer_rows(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
        ['block:0', 'block:1']
    """
    tree = ModuleTree(model)
    if signature is None and not tree.names:
        return []
    roles, sizes = signatures_by_role(tree), Sizes(tree)
    return [
        LayerRow(
            name=match.name,
            role=signature_of(match, roles),
            index=match.index,
            module=class_at(match),
            parameters=0 if match.head is not None else sizes.of(match.name),
        )
        for match in resolve(tree, "*" if signature is None else signature, containers=True)
    ]


def layers_as_text(rows: Sequence[LayerRow]) -> str:
    """Return the rows as text."""
    cells = [
        (
            row.name,
            row.role or "",
            "" if row.index is None else str(row.index),
            row.module,
            f"{row.parameters:,}",
            "" if row.output_shape is None else str(row.output_shape),
        )
        for row in rows
    ]
    return text_table(("layer", "role", "index", "class", "parameters", "output"), cells, right=(2, 4))
