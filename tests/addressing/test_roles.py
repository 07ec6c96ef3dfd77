"""The roles of a block's parts, in a family of models each; what a part is called does not make it attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import JambaConfig, JambaModel

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.roles import ROLES, roles_of
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import LayerNotFound
from tests.addressing.role_cases import Roles, assert_roles
from tests.addressing.tiny import TEXT

LLAMA = {"attn": "self_attn", "mlp": "mlp", "norm": "input_layernorm"}
GPT2 = {"attn": "attn", "mlp": "mlp", "norm": "ln_1"}
NEOX = {"attn": "attention", "mlp": "mlp", "norm": "input_layernorm"}
BLOOM = {"attn": "self_attention", "mlp": "mlp", "norm": "input_layernorm"}
BART_ENCODER = {"attn": "self_attn", "mlp": "fc2", "norm": "self_attn_layer_norm"}
BART_DECODER = {**BART_ENCODER, "cross_attn": "encoder_attn"}
T5_ENCODER = {"attn": "layer.0.SelfAttention", "mlp": "layer.1.DenseReluDense", "norm": "layer.0.layer_norm"}
T5_DECODER = {**T5_ENCODER, "cross_attn": "layer.1.EncDecAttention", "mlp": "layer.2.DenseReluDense"}

SMALL_BART = dict(vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, pad_token_id=0)
SMALL_WHISPER = {**SMALL_BART, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SMALL_T5 = dict(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=40)

CASES = [
    Roles("llama", TEXT, "0", LLAMA),
    Roles("olmo2", {**TEXT, "pad_token_id": 0}, "0", {**LLAMA, "norm": "post_attention_layernorm"}),
    Roles("gpt2", dict(n_embd=32, n_head=4, n_layer=2), "0", GPT2),
    Roles("codegen", dict(vocab_size=64, n_embd=32, n_head=4, n_layer=2, rotary_dim=4), "-1", GPT2),
    Roles("gpt_neox", TEXT, "0", NEOX),
    Roles("falcon", TEXT, "0", BLOOM),
    Roles("falcon", {**TEXT, "new_decoder_architecture": True}, "1", {**BLOOM, "norm": "ln_attn"}),
    Roles("bloom", dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "0", BLOOM),
    Roles(
        "mpt",
        dict(vocab_size=64, d_model=32, n_layers=2, n_heads=4),
        "0",
        {"attn": "attn", "mlp": "ffn", "norm": "norm_1"},
    ),
    Roles("opt", dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4), "0", BART_ENCODER),
    Roles("xglm", dict(d_model=32, ffn_dim=48, num_layers=2, attention_heads=4), "0", BART_ENCODER),
    Roles("whisper", SMALL_WHISPER, "encoder:0", BART_ENCODER),
    Roles("whisper", SMALL_WHISPER, "decoder:0", BART_DECODER),
    Roles("bart", SMALL_BART, "encoder:0", BART_ENCODER),
    Roles("bart", SMALL_BART, "decoder:0", BART_DECODER),
    Roles("t5", SMALL_T5, "encoder:0", T5_ENCODER),
    Roles("t5", SMALL_T5, "decoder:0", T5_DECODER),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_roles_of_a_block(case: Roles) -> None:
    assert_roles(case)


def jamba() -> JambaModel:
    attention = dict(attn_layer_period=2, attn_layer_offset=1, num_key_value_heads=2)
    experts = dict(expert_layer_period=2, expert_layer_offset=1, num_experts=2)
    with torch.device("meta"):
        return JambaModel(JambaConfig(**TEXT, **attention, **experts, mamba_dt_rank=4, use_mamba_kernels=False))


def test_blocks_without_the_part_are_left_out_and_listed() -> None:
    tree = ModuleTree(jamba())
    notes: list[str] = []
    assert [match.name for match in resolve(tree, "block:*.attn", notes.append)] == ["layers.1.self_attn"]
    assert notes == ["layer 'block:*.attn': 1 of 2 blocks have no 'attn' and are left out: layers.0"]
    with pytest.raises(LayerNotFound, match=r"'layers.0' has no child 'attn'; .*by role: mlp"):
        resolve(tree, "block:0.attn")
    assert len(resolve(tree, "block:*.mlp", notes.append)) == 2 and len(notes) == 1
    assert roles_of(tree, "layers.1")["router"] == "layers.1.feed_forward.router"
    assert "router" not in roles_of(tree, "layers.0")


class SomeAttention(nn.Linear):
    pass


class SomeMLP(nn.Linear):
    pass


class SomeMambaMixer(nn.Linear):
    pass


def test_a_mixer_is_what_its_class_says() -> None:
    mixers = (SomeMambaMixer, SomeAttention, SomeMLP)
    layers = nn.ModuleList(nn.ModuleDict({"mixer": mixer(4, 4)}) for mixer in mixers)
    tree = ModuleTree(nn.ModuleDict({"layers": layers}))
    found = [roles_of(tree, f"layers.{i}") for i in range(3)]
    assert found == [{}, {"attn": "layers.1.mixer"}, {"mlp": "layers.2.mixer"}]


def test_a_gate_without_experts_is_not_a_router() -> None:
    dense = nn.ModuleDict({"mlp": nn.ModuleDict({"gate": nn.Linear(2, 2)})})
    assert list(roles_of(ModuleTree(nn.ModuleDict({"block": dense})), "block")) == ["mlp"]


def test_a_place_that_a_block_leaves_empty_is_not_its_norm() -> None:
    block = nn.ModuleDict({"attn_norm": nn.Identity(), "mlp": nn.Linear(2, 2)})
    assert list(roles_of(ModuleTree(nn.ModuleDict({"block": block})), "block")) == ["mlp"]


def test_no_name_of_a_part_stands_twice_in_a_role() -> None:
    for role, names in ROLES.items():
        assert len(names) == len(set(names)), role


def test_a_list_that_nothing_calls_has_no_role() -> None:
    attention = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])  # LongCat's attentions
    block = nn.ModuleDict(
        {"self_attn": attention, "attention": nn.Linear(2, 2), "ffn": nn.ModuleList([nn.Linear(2, 2)])}
    )
    assert roles_of(ModuleTree(nn.ModuleDict({"block": block})), "block") == {"attn": "block.attention"}
