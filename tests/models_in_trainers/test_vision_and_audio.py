"""Images and sounds: patches and frames are tokens, and the text beside them has tokens of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, SteeringController, attached
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Layers, Tokens
from tests.hooks.positions.test_padding import Mask
from tests.models import CLASSES, VOCABULARY, WIDTH, image_dicts, loader, token_data, trainer, vit
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched, attention_mask, tells


def module_of(model: nn.Module) -> Runs:
    return Runs(model, lambda m, batch: m(**batch).loss, lambda m, batch: m(**batch).logits)


def blocks_of(model: Any, holder: str) -> str:
    """The name of the list of blocks: releases of transformers differ in it."""
    return next(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.startswith(holder) and len(module) > 1
    )


# Images.


@pytest.mark.documents("compatibility/images-vit-sounds-wav2vec2-whisper-both-with-text-llava/detectors")
def test_a_vision_transformer_is_watched_and_steered_exactly() -> None:
    blocks = blocks_of(module_of(vit()), "model")
    layers = [f"{blocks}.1", f"{blocks}.3", "model.vit.embeddings", "model.classifier"]
    assert_watched(lambda: module_of(vit()), image_dicts(10), layers)
    assert_steered(lambda: module_of(vit()), image_dicts(10), f"{blocks}.1")


def test_its_tokens_are_its_patches_the_first_stands_for_the_image() -> None:
    def states(*hooks: Any) -> Tensor:
        model, seen = vit().eval(), list[Tensor]()
        for hook in hooks:
            Layers(model).register_hook(None, hook)
        block = model.get_submodule(f"{blocks_of(model, '')}.1")
        block.register_forward_hook(lambda m, a, y: seen.append(y if isinstance(y, Tensor) else y[0]))
        model(pixel_values=torch.stack([row["pixel_values"] for row in image_dicts(2)]))
        return seen[0]

    plain = states()
    assert plain.shape[1] == 1 + (16 // 8) ** 2
    for tokens, column in (("last", 4), (Tokens(positions=[0]), 0), (Tokens(positions=[-2]), 3)):
        expected = plain.clone()
        expected[:, column] += 1.0
        assert torch.equal(states(FunctionController("block:1", lambda x: x + 1.0, tokens=tokens)), expected)


def test_nothing_in_it_is_generated() -> None:
    steer = SteeringController("block:1", torch.ones(WIDTH), tokens="generated")
    with pytest.raises(
        HookError, match="sees the tokens of an encoder, which are never generated: choose a layer of the"
    ):
        trainer(HookCallback(controllers=steer)).predict(module_of(vit()), loader(image_dicts(4)))


# Images and text in one model: patches beside a text of as many tokens.

PATCHES = 4


def llava() -> Any:
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=16, num_attention_heads=4)
    vision = CLIPVisionConfig(num_hidden_layers=3, image_size=16, patch_size=8, projection_dim=8, **sizes)
    text = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, num_key_value_heads=2, pad_token_id=0, **sizes)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=60))


def captioned(count: int = 8) -> list[dict[str, Tensor]]:
    """An image's tokens and one more, padded on the left: as many as the patches with the one for the image."""
    rows = []
    for i, row in enumerate(image_dicts(count)):
        ids, mask = torch.tensor([3 + i] + [60] * PATCHES), torch.ones(5, dtype=torch.long)
        if i % 2:
            ids, mask = torch.tensor([0] + [60] * PATCHES), torch.tensor([0, 1, 1, 1, 1])
        rows.append(
            {"input_ids": ids, "attention_mask": mask, "pixel_values": row["pixel_values"], "labels": ids.clone()}
        )
    return rows


@pytest.mark.documents("compatibility/images-vit-sounds-wav2vec2-whisper-both-with-text-llava/controllers")
def test_the_texts_padding_is_not_taken_for_that_of_patches() -> None:
    vision, text = (blocks_of(module_of(llava()), f"model.model.{part}") for part in ("vision_tower", "language_model"))
    assert_watched(lambda: module_of(llava()), captioned(), [f"{vision}.1"])
    assert_watched(lambda: module_of(llava()), captioned(), [f"{text}.1"], attention_mask)
    assert_steered(lambda: module_of(llava()), captioned(), f"{vision}.0")
    assert_steered(lambda: module_of(llava()), captioned(), f"{text}.1", mask_of=attention_mask)


def test_while_text_is_generated_patches_are_no_part_of_it() -> None:
    model, batch = llava().eval(), default_collate(captioned(2))
    del batch["labels"]
    model.generation_config.eos_token_id = None
    vision, text = (blocks_of(model, f"model.{part}") for part in ("vision_tower", "language_model"))
    for layer, expected in ((f"{text}.1", [[[0] * 5] * 2, [[1]] * 2, [[1]] * 2]), (f"{vision}.1", None)):
        layers, mask = Layers(model), Mask(layer, "generated")
        layers.register_hook(None, mask)
        if expected is None:
            with pytest.raises(HookError, match="sees the tokens of an encoder, which are never generated"):
                model.generate(**batch, max_new_tokens=3, do_sample=False)
        else:
            model.generate(**batch, max_new_tokens=3, do_sample=False)
            assert [call.int().tolist() for call in mask.calls] == expected
        layers.unregister_all_hooks()


# Sounds.


def wav2vec2() -> Any:
    torch.manual_seed(0)
    convolutions = dict(conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(8, 4), num_feat_extract_layers=2)
    position = dict(num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer")
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16)
    off = dict(mask_time_prob=0.0, mask_feature_prob=0.0, layerdrop=0.0)
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(num_labels=CLASSES, classifier_proj_size=8, **convolutions, **position, **sizes, **off)
    )


def sounds(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(count):
        mask = torch.ones(80, dtype=torch.long)
        mask[80 - 20 * (i % 3) :] = 0
        wave = torch.randn(80, generator=generator) * mask
        rows.append({"input_values": wave, "attention_mask": mask, "labels": torch.tensor(i % CLASSES)})
    return rows


def frames(batch: Any) -> Tensor:
    """The frames that hold sound, ``(B, 8)``: of ``n`` samples ``((n - 8) // 4 + 1 - 4) // 2 + 1``."""
    counts = (((batch["attention_mask"].sum(1) - 8) // 4 + 1) - 4) // 2 + 1
    return torch.arange(8) < counts[:, None]


@pytest.mark.documents("compatibility/images-vit-sounds-wav2vec2-whisper-both-with-text-llava/detectors")
def test_frames_of_padded_sounds_are_left_out() -> None:
    layers = ["model.wav2vec2.encoder.layers.0", "model.wav2vec2.encoder.layers.1", "model.wav2vec2.encoder.layer_norm"]
    assert_watched(lambda: module_of(wav2vec2()), sounds(), layers, frames)
    assert_steered(lambda: module_of(wav2vec2()), sounds(), layers[0], mask_of=frames)


TOO_LONG = r"'model.projector': the attention mask \(4, 80\) does not fit the activation \(4, 8, 8\), so "


def test_a_mask_of_samples_is_not_cut_to_frames() -> None:
    with tells(TOO_LONG + "every element counts, including padding"):
        assert_watched(lambda: module_of(wav2vec2()), sounds(), ["model.projector"])
    steer = FunctionController("model.projector", torch.tanh, tokens="last")
    with pytest.raises(
        HookError, match=TOO_LONG + "tokens cannot be chosen: use tokens='all', or choose another layer"
    ):
        trainer(HookCallback(controllers=steer)).predict(module_of(wav2vec2()), loader(sounds(4)))


def test_convolutions_over_padded_samples_say_that_padding_counts() -> None:
    """Their model is given no mask; the model around it is given that of the samples."""
    model, layer = wav2vec2(), "wav2vec2.feature_extractor.conv_layers.0"
    said = pytest.warns(UserWarning, match=rf"'{layer}': the attention mask \(4, 80\) does not fit .* every element")
    with attached(model, ActivationStatistics(layer)), said:
        model(**default_collate(sounds(4)))


def whisper() -> Any:
    torch.manual_seed(0)
    stacks = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 16))
    }
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    lengths = dict(num_mel_bins=4, max_source_positions=7, max_target_positions=20)
    return WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=VOCABULARY, d_model=WIDTH, use_cache=False, **stacks, **tokens, **lengths)
    )


def spoken(count: int = 8) -> list[dict[str, Tensor]]:
    """As many frames as tokens: each side's mask would fit the other."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_features": torch.randn(4, 14, generator=generator),
            "decoder_input_ids": row["input_ids"],
            "decoder_attention_mask": row["attention_mask"],
            "labels": row["input_ids"],
        }
        for row in token_data(count)
    ]


def decoded(batch: Any) -> Tensor:
    mask: Tensor = batch["decoder_attention_mask"].bool()
    return mask


@pytest.mark.documents("compatibility/encoder-decoders/controllers")
def test_whisper_each_side_has_its_own_tokens_and_the_head_those_of_the_decoder() -> None:
    assert_watched(lambda: module_of(whisper()), spoken(), ["model.model.encoder.layers.1"])
    assert_watched(lambda: module_of(whisper()), spoken(), ["model.model.decoder.layers.1", "model.proj_out"], decoded)
    assert_steered(lambda: module_of(whisper()), spoken(), "model.model.encoder.layers.0")
    assert_steered(lambda: module_of(whisper()), spoken(), "model.model.decoder.layers.0", mask_of=decoded)
    assert_steered(lambda: module_of(whisper()), spoken(), "model.proj_out", mask_of=decoded)


def test_whisper_generates_and_the_prompt_is_the_decoders() -> None:
    model = whisper().eval()
    model.generation_config.update(eos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None, max_length=None)
    features, starts = torch.randn(2, 4, 14), torch.tensor([[1, 5], [1, 6]])
    for which, expected in (("generated", [[[0, 0]] * 2, [[0, 0, 1]] * 2]), ("last", [[[0, 1]] * 2, [[0, 0, 1]] * 2])):
        layers, mask = Layers(model), Mask("model.decoder.layers.1", which)
        layers.register_hook(None, mask)
        model.generate(features, decoder_input_ids=starts, max_new_tokens=2, do_sample=False, use_cache=False)
        assert [call.int().tolist() for call in mask.calls] == expected
        layers.unregister_all_hooks()


@pytest.mark.documents("compatibility/images-vit-sounds-wav2vec2-whisper-both-with-text-llava/logging")
def test_statistics_of_an_evaluation_of_sounds_reach_the_loggers() -> None:
    watch = HookCallback(ActivationStatistics("model.wav2vec2.encoder.layers.1"))
    runner = trainer(watch)
    runner.validate(module_of(wav2vec2()), loader(sounds()), verbose=False)
    tag = "activations_mean/val/model.wav2vec2.encoder.layers.1"
    assert tag in runner.callback_metrics and tag.split("/")[-1] in {row.layer for row in watch.history()}
