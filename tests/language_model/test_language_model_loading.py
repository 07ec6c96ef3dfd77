"""Loading with transformers: a folder, a GGUF file, a folder of GGUF files."""

from pathlib import Path

import pytest
import torch

from mi_crow_lightning.hooks import LayerActivationDetector
from mi_crow_lightning.language_model import LanguageModel
from mi_crow_lightning.language_model.loading import load_tokenizer
from mi_crow_lightning.store import LocalStore
from tests.tiny_gpt2 import BLOCKS, TEXTS, save_gpt2, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def test_a_folder_as_path_and_as_string(folder):
    for given in (folder, str(folder)):
        lm = LanguageModel.from_huggingface(given)
        assert lm.model_id == str(folder)
        assert not lm.model.training
        assert "transformer.h.11.attn.c_attn" in lm.layers.list_layers()
        assert len([name for name in lm.layers.list_layers() if name.count(".") == 2 and ".h." in name]) == BLOCKS
        assert repr(lm) == f"LanguageModel({str(folder)!r}, 0 hooks)"


def test_parameters_reach_the_model_and_the_tokenizer(folder):
    lm = LanguageModel.from_huggingface(
        folder, tokenizer_params={"padding_side": "left"}, model_params={"dtype": torch.bfloat16}, device="cpu"
    )
    assert lm.tokenizer.padding_side == "left"
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}
    assert lm.device == torch.device("cpu")


def test_the_model_is_moved_to_the_device_and_texts_follow(folder):
    lm = LanguageModel.from_huggingface(folder, device="meta")
    assert {parameter.device.type for parameter in lm.model.parameters()} == {"meta"}
    assert {value.device.type for value in lm.tokenize(TEXTS).values()} == {"meta"}


def test_a_missing_padding_token_is_the_end_of_text_token(folder):
    assert tokenizer().pad_token is None
    assert load_tokenizer(folder).pad_token == "<|endoftext|>"


def test_a_padding_token_of_its_own_is_kept(tmp_path):
    tokenizer(pad_token="<pad>", eos_token="<|endoftext|>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<pad>"


def test_without_an_end_of_text_token_there_is_no_padding_token(tmp_path):
    tokenizer(unk_token="<|endoftext|>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token is None


def test_a_model_of_ones_own_is_named_after_its_config_or_its_class(folder):
    lm = LanguageModel.from_huggingface(folder)
    assert LanguageModel(lm.model, lm.tokenizer).model_id == str(folder)
    assert LanguageModel(torch.nn.Sequential(torch.nn.Identity()), lm.tokenizer).model_id == "Sequential"
    assert LanguageModel(lm.model, lm.tokenizer, model_id="mine").model_id == "mine"


def test_the_store_can_be_given_later(folder, tmp_path):
    lm = LanguageModel.from_huggingface(folder)
    detector = LayerActivationDetector(0)
    lm.layers.register_hook(0, detector)
    assert lm.store is None and detector.context.store is None
    lm.store = LocalStore(tmp_path)
    assert lm.store is detector.context.store is lm.layers.store


def test_what_is_not_there_is_transformers_to_tell(tmp_path):
    with pytest.raises(ValueError, match="Unrecognized model"):
        LanguageModel.from_huggingface(tmp_path)


def test_several_gguf_files_are_listed(tmp_path):
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError) as caught:
        LanguageModel.from_huggingface(tmp_path)
    assert str(caught.value) == f"{str(tmp_path)!r} holds 2 GGUF files: name one of a.gguf, b.gguf"


def test_gguf_files_beside_a_transformers_model_do_not_count(tmp_path):
    save_gpt2(tmp_path)
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    assert len(LanguageModel.from_huggingface(tmp_path).layers.list_layers()) > BLOCKS


# The packaged GGUF: 135 million parameters, loaded once per session.


def test_a_folder_with_one_gguf_file(smollm2):
    assert {parameter.dtype for parameter in smollm2.model.parameters()} == {torch.float32}
    assert not smollm2.model.training
    assert smollm2.tokenizer.pad_token is not None
    detector = LayerActivationDetector()
    smollm2.layers.register_hook("block:-1.mlp", detector)
    outputs, encodings = smollm2.inference.execute_inference(["The capital of France is"])
    smollm2.layers.unregister_hook(detector)
    assert detector.metadata["activations_shape"] == (*encodings["input_ids"].shape, smollm2.model.config.hidden_size)
    assert smollm2.tokenizer.decode(outputs.logits[0, -1].argmax()).strip() == "Paris"


def test_a_gguf_file_by_its_name_gives_the_same_tokenizer(smollm2, smollm2_file):
    tokens = load_tokenizer(smollm2_file)
    assert tokens(TEXTS)["input_ids"] == smollm2.tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "~/nowhere", "../model.gguf"])
def test_a_path_that_is_not_there_is_told_as_a_path(path):
    with pytest.raises(FileNotFoundError, match=f"there is no folder or GGUF file '{path}'; for a model on the hub"):
        LanguageModel.from_huggingface(path)
