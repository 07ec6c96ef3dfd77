"""The smallest calls that run a model: two rows of seven tokens, two small pictures, a short sound."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.report.output_shapes import Call

__all__ = ["tiny_calls"]

_ROWS, _TOKENS, _SAMPLES = 2, 7, 4000


def tiny_calls(model: nn.Module) -> list[Call]:
    """Return small calls of ``model``, or of the transformers models inside it.

    Args:
        model: a model with Lightning's ``example_input_array``, a transformers model, or a model that holds some.

    Raises:
        ValueError: no input for the model is known.
    """
    example = getattr(model, "example_input_array", None)
    if example is not None:
        return [_example_call(model, example)]
    calls = [Call(inner, kwargs=inputs) for inner in _transformers_models(model) if (inputs := _inputs(inner))]
    if not calls:
        raise ValueError(
            f"no input for {type(model).__name__} is known: set its example_input_array to a tensor, a tuple or a dict"
        )
    return calls


def _example_call(model: nn.Module, example: Any) -> Call:
    if isinstance(example, dict):
        return Call(model, kwargs=example)
    return Call(model, tuple(example) if isinstance(example, (tuple, list)) else (example,))


def _transformers_models(module: nn.Module) -> list[nn.Module]:
    """Return the outermost ones. There are none if transformers was never imported."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return []
    if isinstance(module, transformers.PreTrainedModel):
        return [module]
    return [found for child in module.children() for found in _transformers_models(child)]


def _inputs(model: Any) -> dict[str, Tensor]:
    make = _MAKE.get(model.main_input_name)
    if make is None:
        return {}
    inputs = {model.main_input_name: make(model.config)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(model.config)
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _tokens(config: Any) -> Tensor:
    return torch.ones(_ROWS, _TOKENS, dtype=torch.long)


def _pictures(config: Any) -> Tensor:
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(_ROWS, getattr(config, "num_channels", 3), height, width)


def _spectrograms(config: Any) -> Tensor:
    return torch.zeros(_ROWS, config.num_mel_bins, 2 * config.max_source_positions)


def _sounds(config: Any) -> Tensor:
    return torch.zeros(_ROWS, _SAMPLES)


_MAKE: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pictures,
    "input_features": _spectrograms,
    "input_values": _sounds,
}
