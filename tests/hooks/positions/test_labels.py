"""Models with an encoder and a decoder that are called with labels alone, and make the decoder's tokens from them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartModel,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from mi_crow_lightning import HookCallback
from mi_crow_lightning.hooks import ActivationStatistics, Detector, SteeringController, attached
from mi_crow_lightning.hooks.passes.labels import EndOfTexts, real_labels
from tests.hooks.positions.masks import first_of, mask_of
from tests.models import loader, trainer

IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[5, 6, 2, -100, -100], [7, 8, 9, 10, 2]])
REAL = LABELS != -100
PICTURE, SOUND = torch.randn(2, 3, 16, 16), torch.randn(2, 8, 32)
SPECIAL = dict(pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
BERT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64)
VIT = dict(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
BART = dict(vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, max_position_embeddings=64) | dict(
    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48
)
T5 = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)


def t5() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(**T5, **SPECIAL))


def bart() -> nn.Module:
    return BartForConditionalGeneration(BartConfig(**BART, **SPECIAL))


def two_berts() -> nn.Module:
    both = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**BERT), BertConfig(**BERT))
    both.update(SPECIAL | dict(decoder_start_token_id=1))
    return EncoderDecoderModel(both)


def vit_and_gpt2() -> nn.Module:
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VIT), gpt2)
    both.update(SPECIAL)
    return VisionEncoderDecoderModel(both)


def whisper() -> nn.Module:
    sizes = {**BART, "max_target_positions": 64, "max_source_positions": 16, "num_mel_bins": 8}
    return WhisperForConditionalGeneration(WhisperConfig(**sizes, **SPECIAL, bos_token_id=1))


TEXT, PIXELS, FEATURES = dict(input_ids=IDS), dict(pixel_values=PICTURE), dict(input_features=SOUND)
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str, str, str]] = {
    # name: model, inputs, a layer of the decoder, one of the encoder, and the head
    "T5": (t5, TEXT, "decoder.block.1", "encoder.block.1", "lm_head"),
    "BART": (bart, TEXT, "model.decoder.layers.1.fc1", "model.encoder.layers.1", "lm_head"),
    "ViT and GPT-2": (vit_and_gpt2, PIXELS, "decoder.transformer.h.1", "encoder.layernorm", "decoder.lm_head"),
    "Whisper": (whisper, FEATURES, "model.decoder.layers.1", "model.encoder.layers.1", "proj_out"),
}


def mean_at(model: nn.Module, layer: str, real: Tensor | None, call: dict[str, Any]) -> tuple[float, float]:
    """The mean that a detector finds, and that of the real tokens in what a plain hook sees."""
    seen: list[Tensor] = []
    keep = lambda module, args, out: seen.append(first_of(out).double())  # noqa: E731
    handle = model.get_submodule(layer).register_forward_hook(keep)
    hook = ActivationStatistics(layer, statistics=["mean"], histogram=False)
    with torch.no_grad(), attached(model, hook) as layers:
        model(**call)
        (reading,) = layers.take_readings()
    handle.remove()
    return reading.value, (seen[0] if real is None else seen[0][real]).mean().item()


@pytest.mark.parametrize("case", CASES)
def test_padding_in_labels_is_padding_of_the_decoder(case: str) -> None:
    make, inputs, decoder, encoder, head = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer in (decoder, head):
            found, expected = mean_at(model, layer, REAL, {**inputs, "labels": LABELS})
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
        found, expected = mean_at(model, encoder, None, {**inputs, "labels": LABELS})
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("layer", ["decoder.block.1", "lm_head"])
def test_the_id_of_padding_is_padding_too(layer: str) -> None:
    padded = LABELS.masked_fill(~REAL, 0)
    assert mask_of(t5().eval(), layer, input_ids=IDS, labels=padded) == REAL.int().tolist()


def test_where_the_end_of_a_text_pads_it_the_first_one_counts() -> None:
    labels = torch.tensor([[5, 6, 2, 2, 2], [7, 8, 9, 10, 2], [2, 2, -100, 4, -100]])
    found = real_labels(labels, EndOfTexts.of(BartConfig(pad_token_id=2, eos_token_id=2)))
    assert found.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
    assert EndOfTexts.of(BartConfig(pad_token_id=2, eos_token_id=[1, 2])) == EndOfTexts(2, True)
    assert EndOfTexts.of(BartConfig(pad_token_id=0, eos_token_id=[1, 2])) == EndOfTexts(0, False)
    assert real_labels(labels, EndOfTexts.of(None)).equal(labels != -100)


@pytest.mark.parametrize("layer", ["decoder.block.1", "lm_head"])
def test_a_mask_or_tokens_of_the_decoder_come_before_labels(layer: str) -> None:
    model, mask = t5().eval(), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    call = dict(input_ids=IDS, labels=LABELS)
    assert mask_of(model, layer, decoder_attention_mask=mask, **call) == mask.tolist()
    whole = torch.ones_like(mask).tolist()
    assert mask_of(model, layer, decoder_input_ids=LABELS.clamp(3), **call) == whole
    assert mask_of(model, layer, decoder_inputs_embeds=torch.randn(2, 5, 32), **call) == whole


def test_a_decoder_without_labels_reads_the_encoders_tokens() -> None:
    """BART then shifts the tokens of the encoder, and T5 does so to classify a text."""
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    ids = IDS.masked_fill(mask == 0, 0)
    ids[0, 3] = ids[1, 5] = 2
    model = BartModel(BartConfig(**BART, **SPECIAL)).eval()
    assert mask_of(model, "decoder.layers.1", input_ids=ids, attention_mask=mask) == mask.tolist()
    for labels in (torch.tensor([0, 1]), torch.ones(2, 6)):  # of a class, or of several
        classes = T5ForSequenceClassification(T5Config(**T5, **SPECIAL, num_labels=6)).eval()
        call = dict(input_ids=ids, attention_mask=mask, labels=labels)
        assert mask_of(classes, "transformer.decoder.block.1", **call) == mask.tolist()


class Shifts(nn.Module):
    """Makes the tokens of its decoder from all labels but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.model = t5()

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, decoder_input_ids: Any = None, labels: Any = None
    ) -> Any:
        return self.model(input_ids, attention_mask, decoder_input_ids=labels[:, :-1].clamp(0))


def test_labels_of_another_length_are_not_those_of_the_decoder() -> None:
    assert mask_of(Shifts().eval(), "model.decoder.block.1", input_ids=IDS, labels=LABELS) == [[1] * 4] * 2


class Shape(Detector):
    def observe(self, x: Tensor, ctx: Any) -> None:
        self.seen = (ctx.facts.rows, ctx.facts.tokens)


def test_a_layer_on_neither_side_has_as_many_tokens_as_labels() -> None:
    hook = Shape("lm_head")
    with attached(model := t5(), hook):
        model(input_ids=IDS, labels=LABELS)
    assert hook.seen == (2, 5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:To copy construct from a tensor:UserWarning")
def test_a_mask_that_the_model_makes_for_its_decoder_decides() -> None:
    """It shows the tokens that are read, one more than there are labels."""
    found = mask_of(two_berts().eval(), "decoder.bert.encoder.layer.1", input_ids=IDS, labels=LABELS)
    assert found == [[1, 1, 1, 1, 0], [1] * 5]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:To copy construct from a tensor:UserWarning")
def test_the_encoder_does_not_take_the_mask_of_labels_of_its_length() -> None:
    model = two_berts().eval()
    call = dict(input_ids=IDS[:, :5], labels=LABELS)
    assert mask_of(model, "encoder.encoder.layer.1", **call) == [[1] * 5] * 2
    assert mask_of(t5().eval(), "encoder.block.1", **call) == [[1] * 5] * 2


def test_choices_of_tokens_follow_the_labels() -> None:
    model = t5().eval()
    for layer in ("decoder.block.1", "lm_head"):
        assert mask_of(model, layer, "last", input_ids=IDS, labels=LABELS) == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    steer = SteeringController("decoder.block.1", torch.ones(32), 3.0, tokens="last")
    with torch.no_grad():
        plain = model(input_ids=IDS, labels=LABELS).logits
        with attached(model, steer):
            changed = (model(input_ids=IDS, labels=LABELS).logits != plain).any(-1)
    assert changed.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]


class Summarizer(pl.LightningModule):
    """Trains a model on texts and labels alone, and keeps what a layer gave, with plain torch hooks."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.seen = model.train(), []
        model.get_submodule(layer).register_forward_hook(self.keep)

    def keep(self, module: Any, args: Any, out: Any) -> None:
        if torch._C._current_graph_task_id() == -1:  # not in a recompute
            self.seen.append(first_of(out).detach().double())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("make", "layer"), [(t5, "decoder.block.1"), (bart, "model.decoder.layers.1")])
def test_a_fit_counts_the_tokens_of_the_labels(make: Any, layer: str, checkpointed: bool) -> None:
    rows = [dict(input_ids=ids, labels=labels) for ids, labels in [*zip(IDS, LABELS, strict=True)] * 3]
    weights = []
    for watched in (False, True):
        torch.manual_seed(0)
        module = Summarizer(make(), layer)
        if checkpointed:
            enable = getattr(module.model, "activation_checkpointing_enable", None)  # its new name
            (enable or module.model.gradient_checkpointing_enable)()  # type: ignore[operator]
        statistics = ActivationStatistics(f"model.{layer}", statistics=["mean"], histogram=False)
        callback = HookCallback(statistics, log_every_n_steps=1) if watched else HookCallback()
        pl_trainer = trainer(callback)
        torch.manual_seed(1)
        pl_trainer.fit(module, loader(rows, 2))
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        means = [x[REAL].mean().item() for x in module.seen]
        found = [row.value for row in callback.history()]
    assert weights[0].equal(weights[1]) and len(found) == 3
    assert found == pytest.approx(means, rel=1e-5)
