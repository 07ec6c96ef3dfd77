"""Stacks by name: which prefix means which stack of a real model, what `block:*` means there, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

from mi_crow_lightning.addressing.main_stack import find_blocks
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve, signatures_by_role
from mi_crow_lightning.errors import LayerNotFound
from tests.addressing.tiny import TEXT, VISION, tree_of

BOTH = dict(text_config={**TEXT, "model_type": "llama"}, vision_config={**VISION, "model_type": "clip_vision_model"})
BART = dict(vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=3, pad_token_id=0)


@dataclass
class Case:
    """A model: the class of its stacks' blocks by prefix, and the prefix of what ``block:*`` means, if anything."""

    family: str
    auto: Any
    sizes: dict[str, Any]
    stacks: dict[str, str]
    main: str | None = None
    others: dict[str, str] = field(default_factory=dict)  # more prefixes that mean one of the stacks


CASES = [
    Case(
        "t5",
        AutoModelForSeq2SeqLM,
        dict(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=40),
        {"encoder": "T5Block", "decoder": "T5Block"},
    ),
    Case("bart", AutoModelForSeq2SeqLM, BART, {"encoder": "BartEncoderLayer", "decoder": "BartDecoderLayer"}),
    Case(
        "whisper",
        AutoModelForSpeechSeq2Seq,
        {**BART, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        {"encoder": "WhisperEncoderLayer", "decoder": "WhisperDecoderLayer"},
    ),
    Case(
        "encoder-decoder",
        AutoModelForSeq2SeqLM,
        dict(encoder={**TEXT, "model_type": "bert"}, decoder={**TEXT, "model_type": "bert"}),
        # Both hold a module called encoder: the outer one counts.
        {"encoder": "BertLayer", "decoder": "BertLayer"},
        others={"decoder.bert": "BertLayer", "encoder.encoder": "BertLayer"},
    ),
    Case(
        "clip",
        AutoModel,
        dict(text_config={**TEXT, "max_position_embeddings": 16}, vision_config=VISION),
        {"text": "CLIPEncoderLayer", "vision": "CLIPEncoderLayer"},  # equals: none is the main one
        others={"vision_model.encoder": "CLIPEncoderLayer"},
    ),
    Case(
        "llava",
        AutoModelForImageTextToText,
        BOTH,
        {"text": "LlamaDecoderLayer", "vision": "CLIPEncoderLayer"},
        main="text",
        others={"encoder": "CLIPEncoderLayer", "language_model": "LlamaDecoderLayer"},
    ),
    Case(
        "idefics3",
        AutoModelForImageTextToText,
        dict(text_config={**TEXT, "model_type": "llama"}, vision_config=VISION),
        {"text": "LlamaDecoderLayer", "vision": "Idefics3EncoderLayer"},
        main="text",
    ),
    Case(
        "qwen2_vl",
        AutoModelForImageTextToText,
        dict(text_config={**TEXT, "num_key_value_heads": 2}, vision_config=dict(depth=2, embed_dim=32, num_heads=2)),
        {"text": "Qwen2VLDecoderLayer", "vision": "Qwen2VLVisionBlock"},
        main="text",
        others={"visual": "Qwen2VLVisionBlock"},
    ),
    Case(
        "gemma3",
        AutoModelForImageTextToText,
        dict(text_config={**TEXT, "num_key_value_heads": 2, "head_dim": 8}, vision_config=VISION),
        {"text": "Gemma3DecoderLayer", "vision": "SiglipEncoderLayer"},
        main="text",
        others={"vision_tower": "SiglipEncoderLayer"},
    ),
    Case(
        "qwen2_audio",
        AutoModelForSeq2SeqLM,
        dict(
            audio_config=dict(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16),
            text_config={**TEXT, "model_type": "qwen2", "num_key_value_heads": 2},
        ),
        {"text": "Qwen2DecoderLayer", "audio": "Qwen2AudioEncoderLayer"},
        main="text",
    ),
    Case(
        "blip-2",
        AutoModelForImageTextToText,
        dict(
            text_config=dict(model_type="opt", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
            vision_config=VISION,
            qformer_config=TEXT,
        ),
        {"text": "OPTDecoderLayer", "vision": "Blip2EncoderLayer", "connector": "Blip2QFormerLayer"},
        main="text",
        others={"decoder": "OPTDecoderLayer", "qformer": "Blip2QFormerLayer"},
    ),
    Case(
        "mllama",
        AutoModelForImageTextToText,
        dict(
            text_config={
                **TEXT,
                "num_key_value_heads": 2,
                "num_hidden_layers": 4,
                "cross_attention_layers": [1, 3],
                "pad_token_id": 0,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            vision_config={**VISION, "num_global_layers": 2, "attention_heads": 2},
        ),
        {
            "text": "MllamaSelfAttentionDecoderLayer",
            "transformer": "MllamaVisionEncoderLayer",
            "global_transformer": "MllamaVisionEncoderLayer",
        },
        main="text",
    ),
    Case(
        "qwen3_5",  # two layers of linear attention: neither attention nor most of the parameters
        AutoModelForImageTextToText,
        dict(
            text_config={**TEXT, "num_key_value_heads": 2, "vocab_size": 6400},
            vision_config=dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2),
        ),
        {"text": "Qwen3_5DecoderLayer", "vision": "Qwen3_5VisionBlock"},
        main="text",
    ),
    Case(
        "inkling2",
        AutoModelForImageTextToText,
        {},
        {"text": "Inkling2SlidingDecoderLayer", "vision": "Inkling2VisionEncoderLayer"},
        main="text",
    ),
]
IDS = [case.family for case in CASES]


def classes(tree: ModuleTree, signature: str) -> set[str]:
    return {type(match.module).__name__ for match in resolve(tree, signature)}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_stacks_of_a_model_by_prefix(case: Case) -> None:
    tree = tree_of(case.family, case.auto, **case.sizes)
    for prefix, name in {**case.stacks, **case.others}.items():
        blocks = resolve(tree, f"{prefix}.block:*")
        assert type(blocks[0].module).__name__ == name, prefix
        (stack,) = {match.name.rpartition(".")[0] for match in blocks}
        assert isinstance(tree.modules[stack], nn.ModuleList) and len(blocks) == len(tree.modules[stack])
        assert [(match.stack, match.index) for match in blocks] == [(stack, i) for i in range(len(blocks))]
        for whole in (stack, stack.rpartition(".")[0]):  # the list's own name, and that of its holder
            assert resolve(tree, f"{whole}.block:-1") == [blocks[-1]]
    signatures = [signature for signature in signatures_by_role(tree).values() if signature.endswith("block:0")]
    assert sorted(signatures) == sorted(
        f"{prefix}.block:0" if prefix != case.main else "block:0" for prefix in case.stacks
    )
    for layer, signature in signatures_by_role(tree).items():
        assert [match.name for match in resolve(tree, signature)] == [layer]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_a_block_without_a_prefix_means(case: Case) -> None:
    tree = tree_of(case.family, case.auto, **case.sizes)
    if case.main is not None:
        assert resolve(tree, "block:*") == resolve(tree, f"{case.main}.block:*")
        return
    with pytest.raises(LayerNotFound, match=f"has {len(case.stacks)} stacks of blocks, so .* ambiguous") as caught:
        resolve(tree, "block:*")
    for prefix in case.stacks:
        assert f"'{prefix}.block:*' for " in str(caught.value)


def test_the_parts_of_a_named_stacks_blocks() -> None:
    tree = tree_of("bart", AutoModelForSeq2SeqLM, **BART)

    def names(signature: str) -> list[str]:
        return [match.name for match in resolve(tree, signature)]

    assert names("encoder.block:*.attn") == [f"model.encoder.layers.{i}.self_attn" for i in (0, 1)]
    assert names("decoder.block:-1.cross_attn") == ["model.decoder.layers.2.encoder_attn"]
    assert names("decoder.block:1-2.mlp") == ["model.decoder.layers.1.fc2", "model.decoder.layers.2.fc2"]
    assert names("encoder.block:0.attn.[qk]_proj") == [f"model.encoder.layers.0.self_attn.{p}_proj" for p in "kq"]
    with pytest.raises(LayerNotFound, match=r"'encoder.block:2': the model has 2 blocks, 0 to 1"):
        names("encoder.block:2")
    with pytest.raises(LayerNotFound, match=r"'model.encoder.layers.0' has no child 'cross_attn'"):
        names("encoder.block:0.cross_attn")
    with pytest.raises(LayerNotFound, match=r"A prefix says which stack: 'encoder\.block:3'"):
        names("encoder.block:first")


def test_a_prefix_that_fits_none_or_several_lists_what_there_is() -> None:
    tree = tree_of("clip", AutoModel, text_config={**TEXT, "max_position_embeddings": 16}, vision_config=VISION)
    listed = (
        "  'text.block:*' for 'text_model.encoder.layers': 2 x CLIPEncoderLayer\n"
        "  'vision.block:*' for 'vision_model.encoder.layers': 2 x CLIPEncoderLayer"
    )
    for prefix, what in {
        "audio": "means none of the model's stacks of blocks",
        "vision_tower": "means none of the model's stacks of blocks",
        "encoder": "fits 2 stacks of blocks",
        "ncoder": "means none of the model's stacks of blocks",  # not a whole segment
    }.items():
        with pytest.raises(LayerNotFound) as caught:
            resolve(tree, f"{prefix}.block:*")
        assert str(caught.value) == f"'{prefix}.block:' {what}. Write one of these:\n{listed}"
    with pytest.raises(LayerNotFound, match=r"'encoder.block:' means none .* The model has none."):
        resolve(ModuleTree(nn.Linear(2, 2)), "encoder.block:0")


def test_a_prefix_works_where_there_is_one_stack() -> None:
    tree = tree_of("gpt2", AutoModelForCausalLM, n_embd=32, n_head=4, n_layer=2, vocab_size=64)
    assert resolve(tree, "transformer.block:1") == resolve(tree, "h.block:1") == resolve(tree, "block:1")
    with pytest.raises(LayerNotFound, match=r"'transformer.block:\*' for 'transformer.h': 2 x GPT2Block"):
        resolve(tree, "decoder.block:1")


class Stage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.MultiheadAttention(4, 1) for _ in range(blocks))


def test_a_list_of_blocks_inside_a_stack_by_its_name() -> None:
    tree = ModuleTree(nn.ModuleDict({"stages": nn.ModuleList([Stage(2), Stage(3)]), "head": nn.Linear(4, 2)}))
    assert find_blocks(tree) == ["stages.0", "stages.1"]
    found = resolve(tree, "stages.1.block:*")
    assert [(match.name, match.index) for match in found] == [(f"stages.1.blocks.{i}", i) for i in range(3)]
    with pytest.raises(
        LayerNotFound, match=r"'stages.0.blocks.block:\*' for 'stages.0.blocks': 2 x MultiheadAttention\n"
    ):
        resolve(tree, "blocks.block:*")
