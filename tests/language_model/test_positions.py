"""A text's activations are its own: they do not depend on the padding that stands before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mi_crow_lightning import LanguageModel, LayerActivationDetector
from mi_crow_lightning.language_model import with_positions

SHORT, LONG = "rain fell", "the rain fell on the old stone bridge"
WORDS = ["<pad>", "the", "rain", "fell", "on", "old", "stone", "bridge"]
SIZES: dict[str, Any] = dict(vocab_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0)


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=32, n_layer=3, n_head=4))


def opt() -> Any:
    return OPTForCausalLM(OPTConfig(ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=32, **SIZES))


def roberta() -> Any:
    return RobertaForMaskedLM(RobertaConfig(intermediate_size=48, max_position_embeddings=32, **SIZES))


def bert() -> Any:
    return BertLMHeadModel(BertConfig(intermediate_size=48, max_position_embeddings=32, is_decoder=True, **SIZES))


def language_model(make: Any, side: str) -> LanguageModel:
    torch.manual_seed(0)
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", padding_side=side)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return LanguageModel(make().eval(), tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [gpt2, opt, roberta, bert])
def test_a_text_beside_a_longer_one(make: Any, side: str) -> None:
    lm = language_model(make, side)
    with torch.no_grad():
        alone: Tensor = lm.model(torch.tensor([[2, 3]])).logits[0]
    detector = LayerActivationDetector("block:1")
    lm.layers.register_hook(None, detector)
    output, encodings = lm.inference.execute_inference([SHORT, LONG])
    real = encodings["attention_mask"][0].bool()
    torch.testing.assert_close(output.logits[0][real], alone, rtol=1e-4, atol=1e-5)
    beside = detector.get_captured()[0][real]
    detector.clear_captured()
    lm.inference.execute_inference([SHORT])
    torch.testing.assert_close(beside, detector.get_captured()[0], rtol=1e-4, atol=1e-5)


def test_the_batch_keeps_positions_of_its_own_and_what_needs_none() -> None:
    ids, left = torch.tensor([[0, 2, 3]]), torch.tensor([[0, 1, 1]])
    given = {"input_ids": ids, "attention_mask": left, "position_ids": ids}
    assert with_positions(gpt2(), given)["position_ids"] is ids
    assert "position_ids" not in with_positions(gpt2(), {"input_ids": ids, "attention_mask": left.flip(1)})
    assert "position_ids" not in with_positions(gpt2(), {"input_ids": ids})
    assert "position_ids" not in with_positions(torch.nn.Linear(2, 2), {"input_ids": ids, "attention_mask": left})


def test_a_text_without_any_token_is_refused_before_the_model_is_called() -> None:
    lm = language_model(gpt2, "left")
    called: list[Any] = []
    lm.model.register_forward_hook(lambda *given: called.append(given))
    with pytest.raises(ValueError, match=r"texts without any token, at places 1 \(''\)"):
        lm.inference.execute_inference([SHORT, ""])
    assert not called
