"""Roles where blocks differ: experts and routers in some of them, attention, state spaces and convolutions in turn."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import AutoModelForImageTextToText

from mi_crow_lightning.addressing.main_stack import find_blocks
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import LayerNotFound
from tests.addressing.role_cases import Roles, assert_roles
from tests.addressing.tiny import TEXT, tree_of

LLAMA = {"attn": "self_attn", "mlp": "mlp", "norm": "input_layernorm"}
ROUTED = {**LLAMA, "router": "mlp.gate", "expert": "mlp.experts"}

DEEPSEEK = {
    **TEXT,
    **dict(first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1),
    **dict(
        moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8
    ),
}
JAMBA = {
    **TEXT,
    **dict(num_hidden_layers=4, num_key_value_heads=2, attn_layer_period=4, attn_layer_offset=3, num_experts=2),
    **dict(expert_layer_period=2, expert_layer_offset=1, mamba_dt_rank=4, use_mamba_kernels=False),
}
HYBRID = ["mamba", "hybrid", "mamba", "hybrid"]
ZAMBA = {
    **TEXT,
    **dict(num_hidden_layers=4, layers_block_type=HYBRID, attention_hidden_size=64, num_key_value_heads=4),
    **dict(attention_head_dim=16, mamba_dt_rank=4, n_mamba_heads=2, use_mamba_kernels=False),
}
ZAMBA2 = {
    **TEXT,
    **dict(num_hidden_layers=4, layers_block_type=HYBRID, num_mem_blocks=2, num_key_value_heads=4, adapter_rank=4),
    **dict(mamba_ngroups=1, n_mamba_heads=4, mamba_headdim=16, mamba_d_state=8),
}
NEMOTRON = {
    **TEXT,
    **dict(
        num_hidden_layers=4, layers_block_type=["mamba", "attention", "moe", "mlp"], num_key_value_heads=2, head_dim=8
    ),
    **dict(mamba_num_heads=4, mamba_head_dim=16, n_groups=1, ssm_state_size=8, n_routed_experts=2),
    **dict(num_experts_per_tok=1, moe_intermediate_size=16, moe_shared_expert_intermediate_size=16),
}
OLMO = {**TEXT, "layer_types": ["linear_attention", "full_attention"], "pad_token_id": 0}

CASES = [
    Roles(
        "mixtral",
        {**TEXT, "num_key_value_heads": 2, "num_local_experts": 2},
        "0",
        {
            **LLAMA,
            "mlp": "mlp|block_sparse_moe",
            "router": "mlp.gate|block_sparse_moe.gate",
            "expert": "mlp.experts|block_sparse_moe.experts",
        },
    ),
    Roles("qwen2_moe", {**TEXT, "num_experts": 2, "moe_intermediate_size": 16}, "1", ROUTED),
    Roles("deepseek_v3", DEEPSEEK, "0", LLAMA),
    Roles("deepseek_v3", DEEPSEEK, "1", ROUTED),
    Roles("jamba", JAMBA, "0", {"mlp": "feed_forward", "norm": "input_layernorm"}),
    Roles(
        "jamba",
        JAMBA,
        "3",
        {
            **{"attn": "self_attn", "mlp": "feed_forward", "norm": "input_layernorm"},
            **{"router": "feed_forward.router", "expert": "feed_forward.experts"},
        },
    ),
    Roles("zamba", ZAMBA, "0", {"norm": "input_layernorm"}),
    Roles(
        "zamba",
        ZAMBA,
        "1",
        {
            "attn": "shared_transf.self_attn",
            "mlp": "shared_transf.feed_forward",
            "norm": "shared_transf.input_layernorm",
        },
    ),
    Roles("zamba2", ZAMBA2, "2", {"norm": "input_layernorm"}),
    Roles(
        "zamba2",
        ZAMBA2,
        "1",
        {
            "attn": "shared_transformer.self_attn",
            "mlp": "shared_transformer.feed_forward",
            "norm": "shared_transformer.input_layernorm",
        },
    ),
    Roles("nemotron_h", NEMOTRON, "0", {"norm": "norm"}),
    Roles("nemotron_h", NEMOTRON, "1", {"attn": "mixer", "norm": "norm"}),
    Roles(
        "nemotron_h", NEMOTRON, "2", {"mlp": "mixer", "norm": "norm", "router": "mixer.gate", "expert": "mixer.experts"}
    ),
    Roles("nemotron_h", NEMOTRON, "3", {"mlp": "mixer", "norm": "norm"}),
    Roles("olmo_hybrid", OLMO, "0", {"mlp": "mlp", "norm": "input_layernorm"}),
    Roles("olmo_hybrid", OLMO, "1", {**LLAMA, "norm": "post_attention_layernorm"}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_roles_of_a_block(case: Roles) -> None:
    assert_roles(case)


# Model type, sizes, and which of the blocks have attention and routers.
HAVING: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "deepseek_v3": (DEEPSEEK, [0, 1], [1]),
    "jamba": (JAMBA, [3], [1, 3]),
    "zamba2": (ZAMBA2, [1, 3], []),
    "nemotron_h": (NEMOTRON, [1], [2]),
    "olmo_hybrid": (OLMO, [1], []),
}


@pytest.mark.parametrize("family", HAVING)
def test_the_blocks_that_have_the_part_and_a_note_of_those_that_have_not(family: str) -> None:
    sizes, *having = HAVING[family]
    tree = tree_of(family, **sizes)
    blocks = find_blocks(tree)
    for role, places in zip(("attn", "router"), having, strict=True):
        if not places:
            continue
        notes: list[str] = []
        found = resolve(tree, f"block:*.{role}", notes.append)
        assert [match.index for match in found] == places
        assert all(match.name.startswith(f"{blocks[i]}.") for match, i in zip(found, places, strict=True))
        without = [block for i, block in enumerate(blocks) if i not in places]
        said = f"{len(without)} of {len(blocks)} blocks have no {role!r} and are left out: {', '.join(without)}"
        assert notes == ([f"layer 'block:*.{role}': {said}"] if without else [])


def test_attention_that_blocks_share() -> None:
    tree = tree_of("zamba", **ZAMBA)  # one module in both blocks, or two with the same weights, as releases have it
    notes: list[str] = []
    found = [match.index for match in resolve(tree, "block:*.attn", notes.append)]
    left_out = "layer 'block:*.attn': 2 of 4 blocks have no 'attn' and are left out: layers.0, layers.2"
    if not tree.aliases:
        assert found == [1, 3] and notes == [left_out]
        return
    assert found == [1]
    assert notes == [
        left_out,
        "layer 'block:*.attn': 'attn' is one layer in several blocks, and counts once: also in layers.3",
    ]


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(4)}) for _ in range(3))
        self.layers[0].update({"attn": nn.MultiheadAttention(4, 1)})
        self.layers[2].update({"attn": self.layers[0]["attn"]})


def test_a_part_that_another_block_has_first_is_refused_by_the_later_blocks_number() -> None:
    tree, notes = ModuleTree(Sharing()), list[str]()
    assert [match.name for match in resolve(tree, "block:*.attn", notes.append)] == ["layers.0.attn"]
    assert [note.partition(": ")[2] for note in notes] == [
        "1 of 3 blocks have no 'attn' and are left out: layers.1",
        "'attn' is one layer in several blocks, and counts once: also in layers.2",
    ]
    with pytest.raises(LayerNotFound, match=r"shares this layer with an earlier block: write 'layers.0.attn' to"):
        resolve(tree, "block:2.attn")


def test_mllamas_text_attends_to_itself_or_to_the_image() -> None:
    tree = mllama()
    assert [match.index for match in resolve(tree, "block:*.attn")] == [0, 2]
    crossing = resolve(tree, "block:*.cross_attn")
    assert [match.index for match in crossing] == [1, 3]
    assert [type(match.module).__name__ for match in crossing] == ["MllamaTextCrossAttention"] * 2
    assert len(resolve(tree, "block:*.mlp")) == 4


def mllama() -> ModuleTree:
    rope = {"rope_type": "linear", "factor": 2.0}
    text = {**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "pad_token_id": 0, "rope_scaling": rope}
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_global_layers=2, attention_heads=2)
    auto = AutoModelForImageTextToText
    return tree_of("mllama", auto, text_config={**text, "num_key_value_heads": 2}, vision_config=vision)


def test_the_blocks_of_inkling2_are_its_texts() -> None:
    tree = tree_of("inkling2", AutoModelForImageTextToText)
    names = [match.name for match in resolve(tree, "block:*.attn")]
    assert names and all(".language_model." in name for name in names)
    assert all(".vision_tower." in match.name for match in resolve(tree, "vision.block:*.mlp"))
    routers = resolve(tree, "block:*.router")
    assert routers and all(isinstance(match.module, nn.Module) and ".mlp." in match.name for match in routers)
