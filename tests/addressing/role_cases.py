"""Cases of roles: a block of a real tiny model, and what it calls the parts that have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mi_crow_lightning.addressing.main_stack import find_blocks
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.roles import roles_of
from tests.addressing.tiny import tree_of


@dataclass(frozen=True)
class Roles:
    """A block of a model, and its parts by role.

    Attributes:
        family: its model type.
        sizes: what its configuration needs.
        block: the stack's prefix, if it needs one, and the index: ``"decoder:0"``.
        parts: the name of the part by role; where releases of transformers differ, several, separated by ``|``.
    """

    family: str
    sizes: dict[str, Any]
    block: str
    parts: dict[str, str]

    def __str__(self) -> str:
        return f"{self.family}-{self.block}"


def assert_roles(case: Roles) -> None:
    """The block has these roles and no others."""
    tree = tree_of(case.family, **case.sizes)
    prefix, _, index = case.block.rpartition(":")
    block = find_blocks(tree, prefix or None)[int(index)]
    expected = {role: _part(tree, block, names.split("|")) for role, names in case.parts.items()}
    # Some releases hold experts in a list, which nothing calls.
    expected = {role: part for role, part in expected.items() if not isinstance(tree.modules[part], nn.ModuleList)}
    assert roles_of(tree, block) == expected


def _part(tree: ModuleTree, block: str, names: list[str]) -> str:
    return next(part for name in names if (part := f"{block}.{name}") in tree.modules)
