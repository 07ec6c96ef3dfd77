"""The *token module* of a layer: the module around it whose call says which tokens are real."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.axes import axes_of
from mi_crow_lightning.hooks.passes.labels import NO_ENDS, EndOfTexts, real_labels

__all__ = ["TOKEN_INPUTS", "Signature", "takes_a_mask", "token_module", "virtual_tokens"]

TOKEN_INPUTS = ("input_ids", "inputs_embeds")
_TORCH_INPUTS = {"src_key_padding_mask": "src", "tgt_key_padding_mask": "tgt", "key_padding_mask": "query"}
_OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")  # images, videos, sounds


def token_module(ancestors: Sequence[nn.Module]) -> nn.Module | None:
    """Return the module among a layer's ancestors, innermost first, whose call says which tokens are real.

    This is the innermost module that takes token IDs or embeddings together with an ``attention_mask`` (by name, or
    among any keywords) or one of torch's own that takes a key padding mask; or else the innermost with a mask. (An
    inner mask may describe keys, as in cross-attention, and an outer mask another model's tokens.) The search ends at a
    model of images or sounds: the text beside them has its own tokens.
    """
    first = None
    for module in ancestors:
        names = _parameters_of(module)
        takes_tokens = any(name in names for name in TOKEN_INPUTS)
        if takes_tokens and takes_a_mask(module):
            return module
        if _torch_mask(names) is not None:
            return first or module
        if "attention_mask" in names and "inputs_mask" in names:  # Perceiver's latents: a mask around is of its inputs
            return first or module
        if "attention_mask" in names:
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
        padding_mask: the argument of torch's own modules in which True is padding; ``None`` in other modules.
        pad_ids: the IDs that the model's config names as padding, or else as the end of a text.
        tokens_first: whether its embeddings are ``(T, B, D)``.
        ends: the IDs that end the labels from which the model makes the decoder's tokens.
    """

    names: tuple[str, ...]
    side: Literal["encoder", "decoder"] | None
    prefix: str
    padding_mask: str | None = None
    pad_ids: tuple[int, ...] = ()
    tokens_first: bool = False
    ends: EndOfTexts = NO_ENDS

    @classmethod
    def of(cls, module: nn.Module, ancestors: Sequence[nn.Module]) -> Signature:
        """Return the signature of a token module, where ``ancestors`` are the modules around one of its layers."""
        names = _parameters_of(module)
        if "decoder_input_ids" in names:  # around both sides: a layer on neither, such as a head, follows the decoder
            ends = EndOfTexts.of(getattr(module, "config", None))
            return cls(names, "decoder", "decoder_", pad_ids=_pad_ids(module), ends=ends)
        if "attention_mask" not in names and (padding_mask := _torch_mask(names)) is not None:
            return cls(names, None, "", padding_mask, tokens_first=axes_of("", module, ancestors).tokens_first)
        side = _side(module, names)
        if side is None and "past_key_values" not in names and any(map(_takes_no_text, (module, *ancestors))):
            side = "encoder"
        return cls(names, side, "", pad_ids=_pad_ids(module))

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, by parameter name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs} if args else kwargs

    def mask_of(self, given: Mapping[str, Any]) -> Any:
        """Return the mask of the module's own tokens among the arguments of a call."""
        if self.padding_mask is None:
            mask = None if self._masks_keys(given) else given.get(f"{self.prefix}attention_mask")
            return self._mask_of_source(given) if mask is None and self.prefix else mask
        if self.padding_mask == "key_padding_mask" and given.get("key") is not given.get("query"):
            return None  # the keys are other tokens
        return given.get(self.padding_mask)

    def keys_mask_of(self, given: Mapping[str, Any]) -> Any:
        """Return the mask of the tokens that the module's tokens attend to in cross-attention."""
        if self.padding_mask is not None:
            return given.get(self.padding_mask)
        return given.get("attention_mask" if self._masks_keys(given) else "encoder_attention_mask")

    def keys_of(self, given: Mapping[str, Any]) -> Any:
        """Return the states that the module's tokens attend to in cross-attention."""
        if self.padding_mask is None:
            return given.get("encoder_hidden_states")
        key = given.get("key") if self.padding_mask == "key_padding_mask" else None
        return None if key is given.get("query") else key

    def texts_mask_of(self, given: Mapping[str, Any]) -> Any:
        """Return the mask of the only text that the module is called with; ``None`` if it takes two."""
        return None if self.prefix else given.get("attention_mask")

    def translations_mask_of(self, given: Mapping[str, Any]) -> Any:
        """Return the mask of the decoder's text if the module takes two texts, and otherwise ``None``."""
        return self.mask_of(given) if self.prefix else None

    def source_of(self, given: Mapping[str, Any]) -> Tensor | None:
        """Return the labels, or else the IDs of the encoder, from which the model makes the decoder's tokens.

        Returns:
            ``(B, T)``, as long as the decoder's text; ``None`` if the decoder's tokens are given, or nothing else is.
        """
        if not self.prefix or any(given.get(f"decoder_{name}") is not None for name in TOKEN_INPUTS):
            return None
        for ids in (given.get("labels"), given.get("input_ids")):
            if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point():
                return ids
        return None

    def _mask_of_source(self, given: Mapping[str, Any]) -> Any:
        source = self.source_of(given)
        if source is None or source is given.get("input_ids"):
            return None if source is None else given.get("attention_mask")
        return real_labels(source, self.ends)

    def tokens_of(self, given: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the token IDs and the embeddings among the arguments of a call."""
        if self.padding_mask is not None:
            return None, given.get(_TORCH_INPUTS[self.padding_mask])
        ids, embeddings = (given.get(f"{self.prefix}{name}") for name in TOKEN_INPUTS)
        return ids, embeddings

    def _masks_keys(self, given: Mapping[str, Any]) -> bool:
        """Return whether this is a cross-attention whose only mask is that of its keys, as in diffusers."""
        return (
            given.get("encoder_hidden_states") is not None
            and "encoder_attention_mask" not in self.names
            and not any(name in self.names for name in TOKEN_INPUTS)
        )


def virtual_tokens(module: Any) -> int:
    """Return the length of the prompt that PEFT has learned (prompt tuning, prefix tuning, ...) and puts before a text.

    A PeftModel is recognised by its config, so PEFT need not be imported.
    """
    if not hasattr(type(module), "active_peft_config"):  # a module that has no such attribute takes long to say so
        return 0
    config = module.active_peft_config
    is_on = getattr(config, "is_prompt_learning", False) and not getattr(module, "_adapters_disabled", False)
    return int(config.num_virtual_tokens) if config is not None and is_on else 0


def takes_a_mask(module: nn.Module) -> bool:
    """Return whether a module can be called with ``attention_mask=``, by name or among any keywords."""
    names, takes_any_keyword = _forward_of(module)
    return "attention_mask" in names or takes_any_keyword


def _pad_ids(module: nn.Module) -> tuple[int, ...]:
    config = getattr(module, "config", None)
    for name in ("pad_token_id", "eos_token_id"):
        ids = getattr(config, name, None)
        if isinstance(ids, int):
            return (ids,)
        if isinstance(ids, (list, tuple)) and ids:
            return tuple(ids)
    return ()


def _torch_mask(names: Sequence[str]) -> str | None:
    return next((name for name in _TORCH_INPUTS if name in names), None)


def _parameters_of(module: nn.Module) -> tuple[str, ...]:
    return _forward_of(module)[0]


# Asked of each layer and all that holds it: a model has few kinds of module.
_forwards: WeakKeyDictionary[Callable[..., Any], tuple[tuple[str, ...], bool]] = WeakKeyDictionary()


def _forward_of(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    """Return the names of a module's parameters, and whether it takes any keyword."""
    function = getattr(type(module), "forward", None)
    if "forward" in vars(module) or not isinstance(function, FunctionType):
        return _read(module)
    if function not in _forwards:
        _forwards[function] = _read(module)
    return _forwards[function]


def _read(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    parameters = inspect.signature(module.forward).parameters
    return tuple(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _takes_no_text(module: nn.Module) -> bool:
    names = _parameters_of(module)
    texts = (*TOKEN_INPUTS, "decoder_input_ids")
    return any(name in names for name in _OTHER_INPUTS) and not any(name in names for name in texts)


def _side(module: nn.Module, names: Sequence[str]) -> Literal["encoder", "decoder"] | None:
    attends = "encoder_hidden_states" in names
    if attends and isinstance(decodes := getattr(module, "is_decoder", None), bool):  # T5: one class for both
        return "decoder" if decodes else "encoder"
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return "decoder" if attends else "encoder"
    return None
