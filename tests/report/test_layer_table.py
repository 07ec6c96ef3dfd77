"""The table of layers: each row's name and role lead back to the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mi_crow_lightning import LayerNotFound, layer_table
from mi_crow_lightning.addressing.module_tree import ModuleTree, can_be_called
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.hooks import ActivationStatistics, Layers
from mi_crow_lightning.report.layer_rows import layer_rows, layers_as_text
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
    assert layers_as_text(layer_rows(model)) == (
        "layer   role     index  class       parameters\n"
        "stem                    Linear               6\n"
        "body                    Sequential       4,008\n"
        "body.0  block:0      0  Linear           4,002\n"
        "body.1  block:1      1  Linear               6"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_a_live_model_has_every_layer_that_hooks_can_be_placed_on(kind: str) -> None:
    model = KINDS[kind][0]()
    table, layers = layer_table(model), Layers(model)
    callable_ = [name for name in layers.list_layers() if can_be_called(model.get_submodule(name))]
    assert [row.layer for row in table] == callable_
    for row in table:
        module = model.get_submodule(row.layer)
        (match,) = resolve(ModuleTree(model), row.signature or row.layer)
        assert (match.module, match.index, match.stack) == (module, row.block, row.stack)
        assert row.parameters == sum(weight.numel() for weight in module.parameters())
        hook = ActivationStatistics(row.layer)
        layers.register_hook(None, hook)
        assert [site.match.name for site in layers.sites(hook)] == [row.layer]


def test_a_pattern_narrows_the_table_as_a_hook_would() -> None:
    model = llama()
    for pattern in ("block:1-2.mlp", 3, ["block:0", "*.norm"], "type:Linear"):
        layers, hook = Layers(model), ActivationStatistics(pattern)
        layers.register_hook(None, hook)
        assert [row.layer for row in layer_table(model, pattern)] == [site.match.name for site in layers.sites(hook)]
    with pytest.raises(LayerNotFound, match="has no child 'atn'"):
        layer_table(model, pattern="block:1.atn")
    with pytest.raises(TypeError, match=r"pattern=1\.5 must be a name such as 'block:\*'"):
        layer_table(model, pattern=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model=\[\] must be an nn\.Module"):
        layer_table([])  # type: ignore[arg-type]


def test_roles_blocks_and_stacks() -> None:
    frame = layer_table(llama()).to_pandas()
    assert frame.groupby("role").size().to_dict() == {"block": BLOCKS, "attn": BLOCKS, "mlp": BLOCKS}
    assert frame[frame.role == "attn"].block.tolist() == list(range(BLOCKS))
    assert set(frame["stack"].dropna()) == {"model.layers"}
    assert repr(layer_table(llama(), "block:*")) == f"<{BLOCKS} layers, {BLOCKS} blocks, roles block>"
    stacks = layer_table(nn.ModuleDict({"encoder": llama(), "decoder": llama()}))
    assert {row.stack for row in stacks if row.role == "block"} == {"encoder.model.layers", "decoder.model.layers"}
    assert len({row.signature for row in stacks if row.role == "block"}) == 2 * BLOCKS


def test_a_table_without_layers() -> None:
    assert layer_table(nn.Linear(2, 2)) == [] and repr(layer_table(nn.Linear(2, 2))) == "<0 layers, 0 blocks>"


def test_heads_that_a_pattern_asks_for_have_rows() -> None:
    table = layer_table(llama(), ["block:1", "block:1.attn.head:2-3"])
    assert [(row.layer, row.role, row.signature, row.module, row.output) for row in table[1:]] == [
        (f"model.layers.1.self_attn.head:{head}", "head", f"block:1.attn.head:{head}", "head", "(..., 8)")
        for head in (2, 3)
    ]
    assert [row.role for row in layer_rows(llama(), "block:0.attn.head:-1")] == ["block:0.attn.head:3"]
