"""The outline of a model by name: of transformers by its config alone, or of the user's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from mi_crow_lightning import LayerNotFound
from mi_crow_lightning.language_model import model_outline
from mi_crow_lightning.language_model.model_outline import outline
from mi_crow_lightning.language_model.without_weights import model_from_config, read_config
from tests.models import WIDTH, Module, llama, mlp
from tests.tiny_gpt2 import save_gpt2

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
V5 = transformers.__version__ >= "5"


def saved(folder: Path, config: PretrainedConfig, architecture: type[Any] | None = None) -> str:
    config.architectures = [architecture.__name__] if architecture is not None else None
    config.save_pretrained(folder)
    return str(folder)


def test_of_a_folder_only_the_config_is_read(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "gpt2")
    real = AutoModelForCausalLM.from_pretrained(folder)
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    found = outline(str(folder))
    assert (found.module, found.shapes_found_by) == ("GPT2LMHeadModel", "fake")
    assert found.inputs == {"input_ids": (2, 7)}
    assert found.parameters == sum(weight.numel() for weight in real.parameters())
    assert {row.name: row.parameters for row in found.layers} == {
        name: sum(weight.numel() for weight in module.parameters()) for name, module in real.named_modules() if name
    }
    assert {row.output_shape for row in found.layers if row.role} == {(2, 7, 32)}
    assert [row.output_shape for row in outline(str(folder), "block:0.attn.head:*").layers] == [(2, 7, 8)] * 4


@pytest.mark.parametrize(
    ("config", "architecture", "made"),
    [
        (BertConfig(**SIZES, vocab_size=64), BertForSequenceClassification, "BertForSequenceClassification"),
        (LlamaConfig(**SIZES, vocab_size=64), None, "LlamaForCausalLM"),
        (T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4), None, "T5Model"),
    ],
)
def test_the_class_is_the_one_that_the_config_names(
    tmp_path: Path, config: PretrainedConfig, architecture: type[Any] | None, made: str
) -> None:
    assert outline(saved(tmp_path, config, architecture), "*.0").module == made


def test_an_encoder_and_a_decoder_both_run(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    found = outline(saved(tmp_path, config, T5ForConditionalGeneration), "*.block.*")
    assert found.inputs == {"input_ids": (2, 7), "decoder_input_ids": (2, 7)}
    assert [row.index for row in found.layers] == [0, 1, 0, 1]
    assert [(row.name, row.output_shape, row.role) for row in found.layers] == [
        (f"{side}.block.{i}", (2, 7, 32), f"{side}.block:{i}") for side in ("encoder", "decoder") for i in range(2)
    ]


def test_sounds_are_given_to_a_model_of_sounds(tmp_path: Path) -> None:
    layers = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    config = WhisperConfig(
        **layers, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=50
    )
    found = outline(saved(tmp_path, config, WhisperForConditionalGeneration), "*.layers.0")
    assert found.inputs == {"input_features": (2, 8, 100), "decoder_input_ids": (2, 7)}
    assert [row.output_shape for row in found.layers] == [(2, 50, 16), (2, 7, 16)]


def mixtral(dtype: str | None = None) -> MixtralConfig:
    return MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=4, **SIZES, dtype=dtype)


def test_experts_need_numbers_and_are_run_on_the_cpu(tmp_path: Path) -> None:
    found = outline(saved(tmp_path, mixtral()), "block:*")
    assert found.shapes_found_by == "cpu"
    assert [row.output_shape for row in found.layers] == [(2, 7, 32)] * 2


@pytest.mark.skipif(not V5, reason="transformers 4 chooses experts by their numbers")
def test_experts_in_the_precision_of_their_config_need_none(tmp_path: Path) -> None:
    assert outline(saved(tmp_path, mixtral("bfloat16")), "block:*").shapes_found_by == "fake"


def test_too_large_to_be_run_on_the_cpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_outline, "_MOST_ON_CPU", 1000)
    found = outline(saved(tmp_path, mixtral()), "block:*")
    assert found.shapes_found_by is None
    assert found.shapes_unknown.endswith(
        "on the CPU: ValueError: it has more than 1,000 parameters, too many to run on the CPU"
    )
    assert {row.output_shape for row in found.layers} == {None}
    assert f"output shapes are not known: {found.shapes_unknown}" in str(found)


def test_a_gguf_file_has_a_config_too(smollm2_file: Path) -> None:
    found = outline(str(smollm2_file.parent), "block:*")
    assert (found.module, len(found.layers), found.parameters) == ("LlamaForCausalLM", 30, 134_515_008)
    assert {row.output_shape for row in found.layers} == {(2, 7, 576)}


def test_making_a_blank_model_leaves_the_default_dtype(tmp_path: Path) -> None:
    config = read_config(saved(tmp_path, mixtral("bfloat16")))
    assert {weight.dtype for weight in model_from_config(config).parameters()} == {torch.bfloat16}
    assert {weight.device.type for weight in model_from_config(config).parameters()} == {"meta"}
    assert {weight.dtype for weight in model_from_config(config, "cpu").parameters()} == {torch.float32}
    assert torch.get_default_dtype() is torch.float32


# What importable names give.


def alike() -> nn.Module:
    return llama()


class WithExample(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.example_input_array = torch.zeros(3, 8)

    def forward(self, x: Any) -> Any:
        return self.body(x)


class WithNamedExample(WithExample):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = {"x": torch.zeros(3, 8)}


class Around(Module):
    def __init__(self) -> None:
        super().__init__(llama())


instance = mlp()


@pytest.mark.parametrize(
    ("name", "inputs", "shapes"),
    [
        ("alike", {"input_ids": (2, 7)}, {"model.layers.0": (2, 7, WIDTH)}),
        ("WithExample", {"input": (3, 8)}, {"body.0": (3, WIDTH), "body.5": (3, 5), "body": (3, 5)}),
        ("WithNamedExample", {"x": (3, 8)}, {"body.0": (3, WIDTH)}),
        ("Around", {"input_ids": (2, 7)}, {"model.model.layers.0": (2, 7, WIDTH)}),
        ("instance", {}, {}),
    ],
)
def test_a_function_a_class_or_an_instance_gives_the_model(name: str, inputs: Any, shapes: Any) -> None:
    found = outline(f"{__name__}:{name}")
    assert found.inputs == inputs
    known = {row.name: row.output_shape for row in found.layers if row.output_shape is not None}
    assert {layer: known[layer] for layer in shapes} == shapes
    assert bool(known) == bool(shapes)
    if not shapes:
        assert found.shapes_unknown.startswith("no input for Sequential is known: set its example_input_array")


def fails() -> nn.Module:
    raise RuntimeError("no weights here")


a_number = 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:model", "'no.such.module' cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (f"{__name__}:alikke", f"'{__name__}:alikke': '{__name__}' has no 'alikke'; closest: alike"),
        (f"{__name__}:a_number", "is a int: name a function, a class or an instance of nn.Module"),
        (f"{__name__}:fails", "called without arguments, raised RuntimeError: no weights here"),
        (f"{__name__}:saved", "called without arguments, raised TypeError: saved() missing 2 required"),
        (f"{__name__}:dict", "has no 'dict'"),
        ("builtins:dict", "'builtins:dict' returned a dict, and must return an nn.Module"),
    ],
)
def test_what_gives_no_model_is_told(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        outline(name)
    assert message in str(caught.value)


def test_a_wrong_signature_is_told_before_anything_runs() -> None:
    with pytest.raises(LayerNotFound, match=r"no layer 'body\.9'; closest: 'body\.5'"):
        outline(f"{__name__}:WithExample", "body.9")


def test_a_folder_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}')
    (tmp_path / "code.py").write_text("raise AssertionError('run')")
    with pytest.raises(ValueError, match="custom code"):
        outline(str(tmp_path))


def test_a_folder_without_a_config_is_told(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "mine")  # a folder of a known name would tell transformers 4 its type
    (folder / "config.json").unlink()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        outline(str(folder))
    with pytest.raises(FileNotFoundError, match="there is no folder or GGUF file"):
        outline(str(tmp_path / "gone"))
