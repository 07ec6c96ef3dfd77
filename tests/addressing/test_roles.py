"""The roles of a block's parts, in a family of models each; what a part is called does not make it attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, JambaConfig, JambaModel

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.roles import roles_of
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import LayerNotFound

USUAL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
BART = dict(vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, pad_token_id=0)
FAMILIES: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "llama": (USUAL, "layers.0", {"attn": "self_attn", "mlp": "mlp", "norm": "input_layernorm"}),
    "gpt2": (dict(n_embd=32, n_head=4, n_layer=2), "h.0", {"attn": "attn", "mlp": "mlp", "norm": "ln_1"}),
    "gpt_neox": (USUAL, "layers.0", {"attn": "attention", "mlp": "mlp", "norm": "input_layernorm"}),
    "bert": (
        USUAL,
        "encoder.layer.0",
        {"attn": "attention", "mlp": "output.dense", "norm": "attention.output.LayerNorm"},
    ),
    "opt": (
        dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
        "decoder.layers.0",
        {"attn": "self_attn", "mlp": "fc2", "norm": "self_attn_layer_norm"},
    ),
    "xglm": (
        dict(d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
        "layers.0",
        {"attn": "self_attn", "mlp": "fc2", "norm": "self_attn_layer_norm"},
    ),
    "whisper": (
        {**BART, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        "decoder.layers.0",
        {"attn": "self_attn", "mlp": "fc2", "norm": "self_attn_layer_norm", "cross_attn": "encoder_attn"},
    ),
    "bart": (
        BART,
        "decoder.layers.0",
        {"attn": "self_attn", "mlp": "fc2", "norm": "self_attn_layer_norm", "cross_attn": "encoder_attn"},
    ),
    "t5": (
        dict(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=40),
        "decoder.block.0",
        {
            "attn": "layer.0.SelfAttention",
            "mlp": "layer.2.DenseReluDense",
            "norm": "layer.0.layer_norm",
            "cross_attn": "layer.1.EncDecAttention",
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_roles_of_a_family(family: str) -> None:
    sizes, block, expected = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(family, **sizes))
    assert roles_of(ModuleTree(model), block) == {role: f"{block}.{part}" for role, part in expected.items()}


def jamba() -> JambaModel:
    attention = dict(attn_layer_period=2, attn_layer_offset=1, num_key_value_heads=2)
    experts = dict(expert_layer_period=2, expert_layer_offset=1, num_experts=2)
    with torch.device("meta"):
        return JambaModel(JambaConfig(**USUAL, **attention, **experts, mamba_dt_rank=4, use_mamba_kernels=False))


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
