"""Stacks that neither attention nor their size shows: the configuration around them, or a name, says what they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from mi_crow_lightning.addressing.main_stack import find_blocks
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import LayerNotFound
from tests.addressing.tiny import TEXT, VISION, tree_of

LARGE = dict(vocab_size=5000)  # so that the embeddings are most of the model


@pytest.mark.parametrize(
    ("family", "sizes", "stack"),
    [
        ("mamba", dict(hidden_size=16, num_hidden_layers=2, state_size=4), "backbone.layers"),
        ("falcon_mamba", dict(hidden_size=16, num_hidden_layers=2, state_size=4), "backbone.layers"),
        ("bamba", {**TEXT, "attn_layer_indices": [], "num_key_value_heads": 2, "mamba_n_heads": 4}, "model.layers"),
    ],
)
def test_state_spaces_beside_large_embeddings(family: str, sizes: dict[str, Any], stack: str) -> None:
    tree = tree_of(family, AutoModelForCausalLM, **{**sizes, **LARGE})
    assert find_blocks(tree) == [f"{stack}.0", f"{stack}.1"]


def test_a_single_block_of_text_beside_a_tower_of_images() -> None:
    text = {**TEXT, "model_type": "llama", "num_hidden_layers": 1}
    vision = {**VISION, "model_type": "clip_vision_model"}
    tree = tree_of("llava", AutoModelForImageTextToText, text_config=text, vision_config=vision)
    (block,) = resolve(tree, "block:*")
    assert block.name.endswith("language_model.layers.0") and len(resolve(tree, "vision.block:*")) == 2


def test_a_decoder_of_one_block_makes_its_index_ambiguous() -> None:
    sizes = dict(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=4, vocab_size=40)
    tree = tree_of("t5", AutoModelForSeq2SeqLM, **sizes)
    assert [match.name for match in resolve(tree, "decoder.block:*")] == ["decoder.block.0"]
    with pytest.raises(LayerNotFound, match="2 stacks of blocks"):
        resolve(tree, "block:0")


class MixingLayer(nn.Linear):
    pass


class Head(MixingLayer):
    pass


class AttentionLayer(nn.Linear):
    pass


def counted(count: int, *blocks: nn.Module) -> ModuleTree:
    """A model whose configuration counts blocks, with most parameters elsewhere."""
    model = nn.ModuleDict({"layers": nn.ModuleList(blocks), "embeddings": nn.Linear(99, 99)})
    model.config = SimpleNamespace(num_hidden_layers=count)
    return ModuleTree(model)


def test_the_count_and_the_names_of_classes_must_fit() -> None:
    assert find_blocks(counted(2, MixingLayer(2, 2), MixingLayer(2, 2))) == ["layers.0", "layers.1"]
    assert find_blocks(counted(1, MixingLayer(2, 2))) == ["layers.0"]
    for other in (
        counted(3, MixingLayer(2, 2), MixingLayer(2, 2)),
        counted(2, nn.Linear(2, 2), nn.Linear(2, 2)),
        counted(2, nn.Linear(2, 2), MixingLayer(2, 2)),
        counted(2, Head(2, 2), MixingLayer(2, 2)),
    ):
        with pytest.raises(LayerNotFound, match="no stack of blocks"):
            find_blocks(other)


def test_a_texts_layers_need_no_configuration() -> None:
    def both(*text: nn.Module) -> ModuleTree:
        tower = nn.ModuleList(AttentionLayer(4, 4) for _ in range(2))
        model = {
            "vision_tower": nn.ModuleDict({"layers": tower}),
            "text_model": nn.ModuleDict({"h": nn.ModuleList(text)}),
        }
        return ModuleTree(nn.ModuleDict({**model, "embeddings": nn.Linear(99, 99)}))

    for count in (1, 2):  # the tower of images is never taken for the main stack
        tree = both(*(MixingLayer(2, 2) for _ in range(count)))
        assert find_blocks(tree, "text") == [f"text_model.h.{i}" for i in range(count)]
        assert find_blocks(tree, "vision") == ["vision_tower.layers.0", "vision_tower.layers.1"]
        with pytest.raises(LayerNotFound, match="2 stacks of blocks"):
            find_blocks(tree)
    assert find_blocks(both(nn.Linear(2, 2))) == ["vision_tower.layers.0", "vision_tower.layers.1"]


def test_other_lists_by_their_names() -> None:
    inner = [nn.ModuleDict({"convs": nn.ModuleList([nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)])}) for _ in range(2)]
    encoder = nn.ModuleDict({"stem": nn.ModuleDict({"stages": nn.ModuleList(inner)})})
    blocks = nn.ModuleList(AttentionLayer(20, 20) for _ in range(2))
    tree = ModuleTree(nn.ModuleDict({"encoder": encoder, "h": blocks}))
    for prefix in ("stem", "encoder.stem", "encoder", "encoder.stem.stages"):
        assert find_blocks(tree, prefix) == ["encoder.stem.stages.0", "encoder.stem.stages.1"], prefix
    assert find_blocks(tree, "encoder.stem.stages.1") == [f"encoder.stem.stages.1.convs.{i}" for i in (0, 1)]
    assert find_blocks(tree) == ["h.0", "h.1"]
