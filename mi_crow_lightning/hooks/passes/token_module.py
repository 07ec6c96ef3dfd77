"""The *token module* of a layer: the module around it whose call says which tokens are real."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

__all__ = ["TOKEN_INPUTS", "Signature", "token_module", "virtual_tokens"]

TOKEN_INPUTS = ("input_ids", "inputs_embeds")
_OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")  # images, videos, sounds


def token_module(ancestors: Sequence[nn.Module]) -> nn.Module | None:
    """Return the module among a layer's ancestors, innermost first, whose call says which tokens are real.

    This is the innermost module that takes token IDs or embeddings together with an ``attention_mask``, or else
    the innermost with a mask. (An inner mask may describe keys, as in cross-attention, and an outer mask another
    model's tokens.) The search ends at a model of images or sounds: the text beside them has its own tokens.
    """
    first = None
    for module in ancestors:
        names = _parameters_of(module)
        takes_tokens = any(name in names for name in TOKEN_INPUTS)
        if "attention_mask" in names:
            if takes_tokens:
                return module
            first = first or module
        if not takes_tokens and any(name in names for name in _OTHER_INPUTS):
            return first or module
    return first


@dataclass(frozen=True)
class Signature:
    """The parameters of a token module's ``forward``, and the module's side of the model.

    Attributes:
        names: the names of the parameters, in order.
        side: ``"encoder"`` or ``"decoder"`` if a model has both.
        prefix: the prefix of the arguments for its tokens: ``"decoder_"`` if it takes two texts.
    """

    names: tuple[str, ...]
    side: Literal["encoder", "decoder"] | None
    prefix: str

    @classmethod
    def of(cls, module: nn.Module, ancestors: Sequence[nn.Module]) -> Signature:
        """Return the signature of a token module, where ``ancestors`` are the modules around one of its layers."""
        names = _parameters_of(module)
        if "decoder_input_ids" in names:  # around both sides: a layer on neither, such as a head, follows the decoder
            return cls(names, "decoder", "decoder_")
        side = _side(module, names)
        if side is None and "past_key_values" not in names and any(map(_takes_no_text, (module, *ancestors))):
            side = "encoder"
        return cls(names, side, "")

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, by parameter name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs} if args else kwargs


def virtual_tokens(module: Any) -> int:
    """Return the length of the prompt that PEFT has learned (prompt tuning, prefix tuning, ...) and puts before a text.

    A PeftModel is recognised by its config, so PEFT need not be imported.
    """
    config = getattr(module, "active_peft_config", None)
    is_on = getattr(config, "is_prompt_learning", False) and not getattr(module, "_adapters_disabled", False)
    return int(config.num_virtual_tokens) if config is not None and is_on else 0


def _parameters_of(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


def _takes_no_text(module: nn.Module) -> bool:
    names = _parameters_of(module)
    texts = (*TOKEN_INPUTS, "decoder_input_ids")
    return any(name in names for name in _OTHER_INPUTS) and not any(name in names for name in texts)


def _side(module: nn.Module, names: Sequence[str]) -> Literal["encoder", "decoder"] | None:
    attends = "encoder_hidden_states" in names
    if isinstance(decodes := getattr(module, "is_decoder", None), bool):  # T5: one class for both
        return "decoder" if decodes else "encoder"
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return "decoder" if attends else "encoder"
    return None
