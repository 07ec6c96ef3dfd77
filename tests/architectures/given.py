"""What the tiny models are called with: texts with padding, pictures, sounds, and which tokens of them are real.

A model's class does not say all of what it takes. So there are several calls of each kind, and the first that runs is
a model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.architectures.pictures import pictures_of, tokens_of_a_picture
from tests.architectures.shrunk import FIRST_WORD, IMAGE, VOCABULARY

ROWS, TOKENS, TARGETS = 3, 11, 7  # primes, so that no other dimension has their lengths
PADDED = (4, 0, 2)  # padding tokens of each row
SIDES = ("left", "right", "none")
SAMPLES, FRAMES = 4000, 64


@dataclass(frozen=True)
class Given:
    """One call of a model.

    Attributes:
        inputs: keyword arguments.
        real: real tokens of the main stack, boolean ``(B, T)``; ``None`` where all elements count.
        real_in_encoder: those of an encoder before it, ``(B, S)``; ``None`` where all elements count.
    """

    inputs: dict[str, Any]
    real: Tensor | None
    real_in_encoder: Tensor | None = None


# A call for each side at which texts may be padded ("none": no padding); None if the call cannot be padded there.
Call = Callable[[str], "Given | None"]


def calls_of(model: Any, kind: str) -> Iterator[Call]:
    """Yield the calls that a model may take, the likely ones first."""
    if is_two_sided(model) and model.main_input_name not in ("input_ids", "inputs"):
        yield from _speeches(model)
    elif kind == "image+text":
        yield from _pictures_and_texts(model)
    elif kind == "vision" or model.main_input_name == "pixel_values":
        yield from (lambda side, p=p: Given(p, None) if side == "none" else None for p in pictures_of(model))
    elif kind == "CTC":
        yield from _sounds(model)
    elif is_two_sided(model):
        yield lambda side: _two_texts(model, side)
    elif model.main_input_name in ("input_values", "input_features"):
        yield from _sounds(model)
    else:
        yield lambda side: _text(model, side)


def is_two_sided(model: Any) -> bool:
    """Return whether a model has an encoder and a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def padding(side: str, width: int = TOKENS) -> Tensor:
    """Return which tokens are real, boolean ``(B, T)``."""
    counts = torch.tensor(PADDED)[:, None]
    columns = torch.arange(width)
    if side == "left":
        return columns >= counts
    return columns < width - counts if side == "right" else torch.ones(ROWS, width, dtype=torch.bool)


def words(width: int = TOKENS, seed: int = 1) -> Tensor:
    """Return token IDs without special ones, ``(B, T)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCABULARY, (ROWS, width), generator=generator)


def _text(model: Any, side: str) -> Given:
    real = padding(side)
    inputs = _taken(model, {"input_ids": words(), "attention_mask": real.long(), "use_cache": False})
    return Given(inputs, real if "attention_mask" in inputs else torch.ones_like(real))  # nothing says what is padding


def _two_texts(model: Any, side: str) -> Given:
    real = padding(side)
    inputs, targets = _targets(side)
    inputs |= {"input_ids": words(), "attention_mask": real.long()}
    return Given(_taken(model, inputs), targets, real)


def _targets(side: str) -> tuple[dict[str, Any], Tensor]:
    real = padding(side, TARGETS)
    return {
        "decoder_input_ids": words(TARGETS, seed=2),
        "decoder_attention_mask": real.long(),
        "use_cache": False,
    }, real


def _pictures_and_texts(model: Any) -> Iterator[Call]:
    """Pictures whose features take the places of image tokens, or that are given beside the text."""
    for pictures in pictures_of(model):
        count = tokens_of_a_picture(model, pictures, ROWS)
        yield lambda side, p=pictures, n=count: _picture_and_text(model, side, p, n)
        if count:
            yield lambda side, p=pictures: _picture_and_text(model, side, p, 0)


def _picture_and_text(model: Any, side: str, pictures: dict[str, Any], count: int) -> Given:
    real, ids = padding(side, count + TOKENS), words(count + TOKENS)
    for row in range(ROWS):
        first = int(real[row].int().argmax())
        ids[row, first : first + count] = IMAGE
    of_images = (ids == IMAGE).long()
    inputs = {"input_ids": ids, "attention_mask": real.long(), "use_cache": False} | pictures
    named = inspect.signature(model.forward).parameters
    inputs |= {name: of_images for name in ("token_type_ids", "mm_token_type_ids") if name in named}
    if "qformer_input_ids" in named:
        inputs["qformer_input_ids"] = words()
    if "cross_attention_mask" in named:
        inputs["cross_attention_mask"] = torch.ones(ROWS, ids.shape[1], 1, 4, dtype=torch.long)
    if "image_attention_mask" in named:
        inputs["image_attention_mask"] = torch.ones(ROWS, ids.shape[1], 1, dtype=torch.long)
    if is_two_sided(model):
        targets, real_targets = _targets(side)
        return Given(_taken(model, inputs | targets), real_targets, real)
    return Given(_taken(model, inputs), real)


def _sounds(model: Any) -> Iterator[Call]:
    """Sounds, right padded as their feature extractors pad them, and the frames that the model makes of them."""
    if model.main_input_name == "input_values":
        yield lambda side: _sound(model, side)
    else:
        for features in _features(model):
            yield lambda side, f=features: Given(f, None) if side == "none" else None


def _sound(model: Any, side: str) -> Given | None:
    if side == "left":
        return None
    lengths = torch.tensor([SAMPLES, 3000, 2000] if side == "right" else [SAMPLES] * ROWS)
    real_samples = torch.arange(SAMPLES) < lengths[:, None]
    sounds = torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(3)) * real_samples
    inputs = _taken(model, {"input_values": sounds, "attention_mask": real_samples.long()})
    lengths_of = getattr(model, "_get_feat_extract_output_lengths", None)
    if lengths_of is None:
        return Given(inputs, None) if side == "none" else None
    frames = torch.arange(int(lengths_of(torch.tensor(SAMPLES)))) < lengths_of(lengths)[:, None]
    return Given(inputs, frames)


def _speeches(model: Any) -> Iterator[Call]:
    """Speech for an encoder, and tokens for a decoder."""
    if model.main_input_name == "pixel_values":
        sounds: list[dict[str, Any]] = pictures_of(model)
    elif model.main_input_name == "input_values":
        sounds = [{"input_values": torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(3))}]
    else:
        sounds = _features(model)
    for sound in sounds:
        yield lambda side, s=sound: _speech(model, side, s)


def _speech(model: Any, side: str, sound: dict[str, Any]) -> Given:
    targets, real = _targets(side)
    return Given(_taken(model, targets | sound), real)


def _features(model: Any) -> list[dict[str, Any]]:
    """Return spectrograms, with the frequencies last or before the frames."""
    config = model.config
    config = getattr(config, "encoder_config", None) or getattr(config, "audio_config", None) or config
    names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim", "mel_bins")
    bins = next((size for name in names if isinstance(size := getattr(config, name, None), int)), 80)
    frames = 2 * config.max_source_positions if hasattr(config, "max_source_positions") else FRAMES
    generator = torch.Generator().manual_seed(4)
    shapes = [(ROWS, bins, frames), (ROWS, frames, bins), (ROWS, 80, frames), (ROWS, frames, 80), (ROWS, bins, 3000)]
    return [{"input_features": torch.randn(*shape, generator=generator)} for shape in shapes]


def _taken(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return those inputs that the model takes by name; all if it takes any names but these with switches."""
    named = inspect.signature(model.forward).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in named.values())
    return {name: value for name, value in inputs.items() if name in named or (takes_any and name != "use_cache")}
