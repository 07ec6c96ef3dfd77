"""The table of layers: each row's name and role lead back to the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mi_crow_lightning import LayerNotFound
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.report.layer_table import layer_rows, layer_table
from tests.models import BLOCKS, KINDS, cnn, llama


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_a_layer_that_its_name_and_its_role_mean(kind: str) -> None:
    model = KINDS[kind][0]()
    rows, tree = layer_rows(model), ModuleTree(model)
    assert [row.name for row in rows] == tree.names
    for row in rows:
        module = model.get_submodule(row.name)
        assert row.module == type(module).__name__
        assert row.parameters == sum(weight.numel() for weight in module.parameters())
        for signature in (row.name, *([row.role] if row.role else [])):
            assert [(match.name, match.index) for match in resolve(tree, signature)] == [(row.name, row.index)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit"])
def test_each_block_its_attention_and_its_mlp_have_a_role(kind: str) -> None:
    model = KINDS[kind][0]()
    roles = {row.role for row in layer_rows(model)} - {None}
    assert roles == {f"block:{i}{part}" for i in range(BLOCKS) for part in ("", ".attn", ".mlp")}


def test_a_model_without_a_main_stack_has_no_roles() -> None:
    rows = layer_rows(nn.ModuleDict({"a": nn.Linear(2, 2), "b": cnn()}))
    assert {row.role for row in rows} == {None} == {row.index for row in rows}


def test_a_signature_chooses_rows() -> None:
    names = [row.name for row in layer_rows(llama(), "block:1-2.mlp")]
    assert names == ["model.layers.1.mlp", "model.layers.2.mlp"]
    with pytest.raises(LayerNotFound, match=r"no layer 'block.1'"):
        layer_rows(llama(), "block.1")


def test_a_model_of_one_module_has_no_rows() -> None:
    assert layer_rows(nn.Linear(2, 2)) == []


def test_weights_that_are_made_in_the_first_pass_do_not_count_before() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    assert [row.parameters for row in layer_rows(model)] == [0, 10]
    model(torch.ones(1, 3))
    assert [row.parameters for row in layer_rows(model)] == [16, 10]


def test_the_text() -> None:
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "body": nn.Sequential(nn.Linear(2000, 2), nn.Linear(2, 2))})
    assert layer_table(layer_rows(model)) == (
        "layer   role     index  class       parameters\n"
        "stem                    Linear               6\n"
        "body                    Sequential       4,008\n"
        "body.0  block:0      0  Linear           4,002\n"
        "body.1  block:1      1  Linear               6"
    )
