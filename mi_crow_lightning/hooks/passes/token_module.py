"""Which module around a layer says which tokens are real, and how it takes them: its *token module*."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

__all__ = ["TOKEN_INPUTS", "Signature", "token_module", "virtual_tokens"]

TOKEN_INPUTS = ("input_ids", "inputs_embeds")
_OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")  # images, films, sounds


def token_module(ancestors: Sequence[nn.Module]) -> nn.Module | None:
    """Return the module among a layer's ancestors, innermost first, whose call says which tokens are real.

    The innermost that takes token IDs or embeddings beside an ``attention_mask``, else the innermost with a
    mask. (An inner mask may speak of keys, as in cross attention, and an outer one of another model's tokens.)
    The search ends at a model of images or sounds: the text beside them has its own tokens.
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
    """The parameters of a token module's ``forward``, and the side of the model that it stands on.

    Attributes:
        names: of its parameters, in order.
        side: ``"encoder"`` or ``"decoder"`` where a model has both.
        prefix: what stands before the names of its tokens' arguments: ``"decoder_"`` where it takes two texts.
    """

    names: tuple[str, ...]
    side: Literal["encoder", "decoder"] | None
    prefix: str

    @classmethod
    def of(cls, module: nn.Module, ancestors: Sequence[nn.Module]) -> Signature:
        """Return the signature of a token module, ``ancestors`` being the modules around a layer of it."""
        names = _parameters_of(module)
        if "decoder_input_ids" in names:  # around both sides: what belongs to neither, a head, follows the decoder
            return cls(names, "decoder", "decoder_")
        side = _side(module, names)
        if side is None and "past_key_values" not in names and any(map(_takes_no_text, (module, *ancestors))):
            side = "encoder"
        return cls(names, side, "")

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, by the name of the parameter."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs} if args else kwargs


def virtual_tokens(module: Any) -> int:
    """Return the tokens of the prompt that PEFT has learned (prompt tuning, prefix tuning, ...) and puts before a text.

    A PeftModel is known by its config, so that nothing of PEFT is imported.
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
