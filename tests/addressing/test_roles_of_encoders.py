"""Roles in BERT's kin and in vision's and CLIP's encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.roles import roles_of
from mi_crow_lightning.addressing.signatures import resolve
from tests.addressing.role_cases import Roles, assert_roles
from tests.addressing.tiny import TEXT, VISION, tree_of

BERT = {"attn": "attention", "mlp": "output.dense", "norm": "attention.output.LayerNorm"}
VIT = {"attn": "attention", "mlp": "mlp|output.dense", "norm": "layernorm_before"}
CLIP = {"attn": "self_attn", "mlp": "mlp", "norm": "layer_norm1"}
SMALL_CLIP = dict(text_config={**TEXT, "max_position_embeddings": 16}, vision_config=VISION)

CROSSING = {**TEXT, "is_decoder": True, "add_cross_attention": True}

CASES = [
    Roles("bert", TEXT, "0", BERT),
    Roles("bert", CROSSING, "0", {**BERT, "cross_attn": "crossattention"}),
    Roles("roberta", TEXT, "-1", BERT),
    Roles("electra", {**TEXT, "embedding_size": 16}, "0", BERT),
    Roles("deberta-v2", TEXT, "0", BERT),
    Roles("mpnet", TEXT, "0", {**BERT, "norm": "attention.LayerNorm"}),
    Roles("megatron-bert", TEXT, "0", {**BERT, "norm": "attention.ln"}),
    Roles(
        "distilbert",
        dict(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4),
        "0",
        {"attn": "attention", "mlp": "ffn", "norm": "sa_layer_norm"},
    ),
    Roles(
        "xlnet",
        dict(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48),
        "0",
        {"attn": "rel_attn", "mlp": "ff"},
    ),
    Roles("modernbert", {**TEXT, "pad_token_id": 0}, "1", {"attn": "attn", "mlp": "mlp", "norm": "attn_norm"}),
    Roles("vit", VISION, "0", VIT),
    Roles("clip", SMALL_CLIP, "text:0", CLIP),
    Roles("clip", SMALL_CLIP, "vision:1", CLIP),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_roles_of_a_block(case: Roles) -> None:
    assert_roles(case)


def albert() -> AlbertModel:
    torch.manual_seed(0)
    return AlbertModel(AlbertConfig(**TEXT, embedding_size=8)).eval()


def test_the_mlp_of_albert_is_its_second_linear_layer() -> None:
    model = albert()
    tree, block = ModuleTree(model), "encoder.albert_layer_groups.0.albert_layers.0"
    assert roles_of(tree, block) == {
        "attn": f"{block}.attention",
        "mlp": f"{block}.ffn_output",
        "norm": f"{block}.attention.LayerNorm",
    }
    (mlp,) = resolve(tree, "albert_layers.block:0.mlp")
    assert isinstance(mlp.module, nn.Linear) and mlp.module.out_features == TEXT["hidden_size"]
    seen: list[torch.Tensor] = []
    mlp.module.register_forward_hook(lambda module, args, output: seen.append(output))
    model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert [tuple(output.shape) for output in seen] == [(1, 3, TEXT["hidden_size"])] * TEXT["num_hidden_layers"]


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_what_a_role_is_not_given_to_is_a_child(family: str) -> None:
    tree = tree_of(family, **TEXT)
    assert [match.name for match in resolve(tree, "block:1.intermediate")] == ["encoder.layer.1.intermediate"]
    assert "router" not in roles_of(tree, "encoder.layer.0") and "expert" not in roles_of(tree, "encoder.layer.0")
