"""Signatures of heads: which slices of which output projection they mean, and what is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mi_crow_lightning.addressing.heads import Head
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.addressing.widths import declared_width
from mi_crow_lightning.errors import LayerNotFound
from tests.addressing.tiny import TEXT, tree_of
from tests.models import llama

GROUPED = {**TEXT, "num_key_value_heads": 2}
LATENT = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6)
T5 = dict(vocab_size=64, d_model=32, d_kv=4, d_ff=48, num_layers=2, num_heads=4)

FAMILIES: list[tuple[str, dict[str, Any], str, int, int]] = [
    # family, sizes, what block 0's attention's projection is called, heads, their width
    ("llama", GROUPED, "self_attn.o_proj", 4, 8),
    ("mixtral", GROUPED, "self_attn.o_proj", 4, 8),
    ("gemma", {**GROUPED, "head_dim": 16}, "self_attn.o_proj", 4, 16),
    ("qwen3", {**GROUPED, "head_dim": 12}, "self_attn.o_proj", 4, 12),
    ("gpt2", dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4), "attn.c_proj", 4, 8),
    ("gpt_neo", {**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}, "out_proj", 4, 8),
    ("gpt_neox", TEXT, "attention.dense", 4, 8),
    ("gptj", dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4), "attn.out_proj", 4, 8),
    ("bloom", dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "self_attention.dense", 4, 8),
    ("falcon", TEXT, "self_attention.dense", 4, 8),
    ("opt", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}, "self_attn.out_proj", 4, 8),
    ("phi", TEXT, "self_attn.dense", 4, 8),
    ("bert", TEXT, "attention.output.dense", 4, 8),
    ("distilbert", dict(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4), "attention.out_lin", 4, 8),
    ("deepseek_v3", {**TEXT, **LATENT}, "self_attn.o_proj", 4, 6),
    ("modernbert", {**TEXT, "pad_token_id": 0}, "attn.Wo", 4, 8),
]


@pytest.mark.parametrize(
    ("family", "sizes", "projection", "count", "width"), FAMILIES, ids=[row[0] for row in FAMILIES]
)
def test_the_projection_and_the_number_of_heads_are_found(
    family: str, sizes: dict[str, Any], projection: str, count: int, width: int
) -> None:
    tree = tree_of(family, **sizes)
    (attention,) = resolve(tree, "block:0.attn")
    heads = resolve(tree, "block:0.attn.head:*")
    assert [match.name for match in heads] == [f"{attention.name}.head:{i}" for i in range(count)]
    assert [match.head for match in heads] == [Head(i, count, width, heads[0].module_name) for i in range(count)]
    assert heads[0].module_name.endswith(projection) and heads[0].module is tree.modules[heads[0].module_name]
    assert {declared_width(tree, match) for match in heads} == {width}
    assert {match.index for match in heads} == {0}


def test_both_stacks_of_an_encoder_decoder_have_heads() -> None:
    tree = tree_of("t5", **T5)
    (own,) = resolve(tree, "encoder.block:1.attn.head:-1")
    (crossed,) = resolve(tree, "decoder.block:1.cross_attn.head:3")
    assert own.head == Head(3, 4, 4, "encoder.block.1.layer.0.SelfAttention.o")
    assert crossed.head == Head(3, 4, 4, "decoder.block.1.layer.1.EncDecAttention.o")


TREE = ModuleTree(llama())  # 4 blocks of 4 heads


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("block:*.attn.head:2", [(0, 2), (1, 2), (2, 2), (3, 2)]),
        ("block:1-2.attn.head:-1", [(1, 3), (2, 3)]),
        ("block:-1.attn.head:0-1", [(3, 0), (3, 1)]),
        ("model.layers.2.self_attn.head:0", [(2, 0)]),
        ("layers.2.self_attn.head:0", [(2, 0)]),
        ("*.self_attn.head:3", [(0, 3), (1, 3), (2, 3), (3, 3)]),
        ("type:LlamaAttention.head:1", [(0, 1), (1, 1), (2, 1), (3, 1)]),
        (["block:3.attn.head:0", "block:0.attn.head:1", "block:0.attn.head:0-1"], [(0, 0), (0, 1), (3, 0)]),
    ],
)
def test_signatures_of_heads(signature: Any, expected: list[tuple[int, int]]) -> None:
    found = resolve(TREE, signature)
    assert [(match.index, match.head_index) for match in found] == expected
    for match in found:  # its name means it
        assert resolve(TREE, match.name) == [match]


@given(st.integers(-9, 9), st.integers(-9, 9) | st.none(), st.integers(-9, 9), st.integers(-9, 9) | st.none())
def test_a_choice_means_what_a_slice_does_or_is_refused(
    block: int, to: int | None, head: int, last: int | None
) -> None:
    def indices(first: int, end: int | None) -> list[int] | None:
        if end is None:
            return [list(range(4))[first]] if -4 <= first < 4 else None
        return list(range(4))[first : end + 1] if 0 <= first <= end < 4 else None

    blocks, heads = indices(block, to), indices(head, last)
    written = f"block:{block}{'' if to is None else f'-{to}'}.attn.head:{head}{'' if last is None else f'-{last}'}"
    if blocks is None or heads is None:
        with pytest.raises(LayerNotFound):
            resolve(TREE, written)
    else:
        found = [(match.index, match.head_index) for match in resolve(TREE, written)]
        assert found == [(one, other) for one in blocks for other in heads]


class Attention(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(12, 12), nn.Linear(12, 12)
        for name, value in attributes.items():
            setattr(self, name, value)


class AttentionWithoutProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.mix = nn.Linear(12, 12), nn.Linear(12, 12)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (Attention(), r"nothing says how many heads '1' has"),
        (
            Attention(num_heads=5),
            r"'1' says that it has 5 heads, and .* '1.o_proj' takes 12 channels",
        ),
        (Attention(num_heads=3, head_dim=8), r"has 3 heads and heads of 8 channels, and .* takes 12 channels"),
        (AttentionWithoutProjection(), r"class AttentionWithoutProjection, has no output projection of a known name"),
        (nn.MultiheadAttention(12, 3), r"class MultiheadAttention, computes heads and the"),
        (nn.Linear(12, 12), r"'1', of class Linear, is not an attention$"),
    ],
)
def test_attention_whose_heads_are_not_known_is_refused(attention: nn.Module, message: str) -> None:
    with pytest.raises(LayerNotFound, match=message):
        resolve(ModuleTree(nn.Sequential(nn.Identity(), attention)), "1.head:0")


@pytest.mark.parametrize("attributes", [{"num_heads": 3}, {"head_dim": 4}, {"n_head": 3, "head_dim": 4}])
def test_one_of_number_and_width_is_enough(attributes: dict[str, int]) -> None:
    tree = ModuleTree(nn.Sequential(nn.Identity(), Attention(**attributes)))
    assert [match.head for match in resolve(tree, "1.head:1")] == [Head(1, 3, 4, "1.o_proj")]


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("block:0.attn.head:x", "write heads as 'block:4.attn.head:3'"),
        ("block:0.attn.head:", "write heads as"),
        ("head:3", "write heads as"),
        ("block:0.attn.head:1-9", "'model.layers.0.self_attn' has 4 heads, 0 to 3"),
        ("block:0.attn.head:2-1", "the range is empty, 2 comes after 1"),
        ("block:0.head:1", r"is not an attention: 'model.layers.0.self_attn' is, so write"),
        ("block:0.mlp.head:1", r"'model.layers.0.mlp', of class LlamaMLP, is not an attention"),
        ("block:-3-2.attn", "a range counts from the beginning"),
        ("nothing.head:1", "the model has no layer 'nothing'"),
    ],
)
def test_wrong_signatures_are_refused_with_a_hint(signature: str, message: str) -> None:
    with pytest.raises(LayerNotFound, match=message):
        resolve(TREE, signature)


def test_a_layer_that_is_called_like_a_head_is_meant_by_its_name() -> None:
    tree = ModuleTree(nn.ModuleDict({"a": nn.ModuleDict({"head:1": nn.Linear(2, 2)})}))
    assert resolve(tree, "a.head:1")[0].head is None


def test_an_mlp_whose_last_layer_is_called_like_a_projection_has_no_heads() -> None:
    for family, sizes in (("gpt2", dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4)), ("bert", TEXT)):
        for part in ("block:0", "block:0.mlp"):
            with pytest.raises(LayerNotFound, match="is not an attention"):
                resolve(tree_of(family, **sizes), f"{part}.head:0")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_heads_of_an_adapted_model_are_those_of_the_projection_inside() -> None:
    peft = pytest.importorskip("peft")
    model = llama()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"], r=2))
    (match,) = resolve(ModuleTree(adapted), "block:1.attn.head:2")
    assert match.name == "model.layers.1.self_attn.head:2" and match.head is not None and match.head.width == 8
    assert type(match.module).__module__.startswith("peft.")


def test_torchs_attention_inside_another_is_not_called_with_heads() -> None:
    outer = Attention()
    outer.o_proj = nn.Identity()  # type: ignore[assignment]
    outer.attention = nn.MultiheadAttention(12, 3)
    with pytest.raises(LayerNotFound, match=r"'1.attention', of class MultiheadAttention, computes heads"):
        resolve(ModuleTree(nn.Sequential(nn.Identity(), outer)), "1.head:0")
