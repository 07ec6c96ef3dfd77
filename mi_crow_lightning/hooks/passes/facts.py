"""What the call of a language model says about its tokens: read once a pass, at the layer's token module."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeGuard

from torch import Tensor, nn

__all__ = [
    "Generation",
    "PassFacts",
    "Signature",
    "of_beams",
    "parameters_of",
    "read_facts",
    "token_module",
    "virtual_tokens",
]

_TOKEN_INPUTS = ("input_ids", "inputs_embeds")
_OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")  # images, films, sounds
_STATES = ("cache_params", "state")  # caches of recurrent models, which do not say how many tokens are in them


# Compared by identity: in a recompute a layer gets the very facts of the pass that is recomputed.
@dataclass(frozen=True, eq=False)
class PassFacts:
    """What the call of the layer's model says about its tokens.

    Attributes:
        mask: the attention mask as it was passed, ``None`` when every token is real.
        past: tokens in the cache before this pass; ``None`` when the model takes no cache.
        past_unknown: whether there are tokens before this pass, and nobody knows how many.
        input_ids: the token IDs ``(B, T)`` of this pass; ``None`` when it was called with embeddings.
        position_ids: the position IDs as they were passed.
        embedded: tokens of each row where it was called with embeddings.
        prompt_width: columns of the prompt, padding included; ``None`` when the whole pass is prompt.
        prompt_mask: the attention mask that ``generate`` was called with.
        side: ``"encoder"`` or ``"decoder"`` where a model has both.
        encoder: in a decoder, the encoder's states that it attends to.
        encoder_mask: the attention mask of those.
        generating: whether the pass belongs to a call of ``generate``.
        takes_mask: whether the model takes an attention mask at all.
        unreadable: what the mask was, where it is of a kind that cannot be read.
        lost: whether this is a recompute, and which pass it repeats cannot be told.
    """

    mask: Tensor | None = None
    past: int | None = None
    past_unknown: bool = False
    input_ids: Tensor | None = None
    position_ids: Tensor | None = None
    embedded: int | None = None
    prompt_width: int | None = None
    prompt_mask: Tensor | None = None
    side: Literal["encoder", "decoder"] | None = None
    encoder: weakref.ref[Tensor] | None = None
    encoder_mask: Tensor | None = None
    generating: bool = False
    takes_mask: bool = False
    unreadable: str | None = None
    lost: bool = False

    @property
    def tokens(self) -> int | None:
        """Tokens of each row in this pass; ``None`` where that cannot be told."""
        # Asked of the IDs: a compiled graph takes shapes as they come, but each integer is compiled in.
        return self.input_ids.shape[1] if _is_sequence(self.input_ids) else self.embedded

    def at_layer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PassFacts:
        """The facts of what a layer is given: in cross attention, keys and values are of the encoder's tokens."""
        states = self.encoder() if self.encoder is not None else None
        if states is None or _first_tensor(args, kwargs) is not states:
            return self
        return self._of_encoder

    @cached_property
    def _of_encoder(self) -> PassFacts:
        return PassFacts(mask=self.encoder_mask, side="encoder", generating=self.generating, takes_mask=True)


@dataclass(eq=False)
class Generation:
    """A running call of ``generate``.

    Attributes:
        width: columns of the prompt, padding included; ``None`` until the first pass tells it.
        mask: the attention mask it was called with, ``(B, width)``.
        columns: of each model without a key-value cache, how many columns it was given so far.
    """

    width: int | None = None
    mask: Tensor | None = None
    columns: dict[nn.Module, int] = field(default_factory=dict)

    def state_length(self, module: nn.Module, tokens: int) -> int:
        """Tokens that a recurrent model's state holds before a pass of so many: all that it was given, or none.

        Without its state it is given the whole sequence each time, which grows.
        """
        before = self.columns.get(module, 0)
        past = before if tokens <= before else 0
        self.columns[module] = past + tokens
        return past


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the module's ``forward``, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def token_module(ancestors: Sequence[nn.Module]) -> nn.Module | None:
    """Of a layer's ancestors, innermost first, the one whose call tells which tokens are real.

    The innermost that takes token IDs or embeddings beside an ``attention_mask``, else the innermost with a
    mask. (An inner mask may speak of keys, as in cross attention, and an outer one of another model's tokens.)
    The search ends at a model of images or sounds: the text beside them has tokens of its own.
    """
    first = None
    for module in ancestors:
        names = parameters_of(module)
        takes_tokens = any(name in names for name in _TOKEN_INPUTS)
        if "attention_mask" in names:
            if takes_tokens:
                return module
            first = first or module
        if not takes_tokens and any(name in names for name in _OTHER_INPUTS):
            return first or module
    return first


@dataclass(frozen=True)
class Signature:
    """What the parameters of a token module's ``forward``, and its place, tell.

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
        """The signature of a token module, ``ancestors`` being the modules around a layer of it."""
        names = parameters_of(module)
        if "decoder_input_ids" in names:  # around both sides: what belongs to neither, a head, follows the decoder
            return cls(names, "decoder", "decoder_")
        side = _side(module, names)
        if side is None and "past_key_values" not in names and any(map(_takes_no_text, (module, *ancestors))):
            side = "encoder"
        return cls(names, side, "")


def _takes_no_text(module: nn.Module) -> bool:
    names = parameters_of(module)
    texts = (*_TOKEN_INPUTS, "decoder_input_ids")
    return any(name in names for name in _OTHER_INPUTS) and not any(name in names for name in texts)


def read_facts(
    module: nn.Module,
    given: Mapping[str, Any],
    signature: Signature,
    generation: Generation | None,
    first_width: int | None,
    learned: int = 0,
) -> PassFacts:
    """Read the facts of a call.

    Args:
        module: the token module.
        given: the arguments of its call, by the name of the parameter.
        signature: its signature.
        generation: the running ``generate``, if one runs.
        first_width: tokens of the first pass with an empty cache, in a decoding loop of the user's own.
        learned: tokens of a learned prompt, which PEFT may put into the cache.
    """
    names, prefix = signature.names, signature.prefix
    past = cache_length(given.get("past_key_values")) if "past_key_values" in names else None
    side = signature.side
    ids, embeddings = (given.get(f"{prefix}{name}") for name in _TOKEN_INPUTS)
    embedded = embeddings.shape[1] if _is_sequence(embeddings) else None
    tokens = ids.shape[1] if _is_sequence(ids) else embedded
    mask = _one_mask(given.get(f"{prefix}attention_mask"))
    stateful = any(given.get(name) is not None for name in _STATES)
    if past is None and generation is not None and tokens is not None and any(name in names for name in _STATES):
        past = generation.state_length(module, tokens)
        mask = _grown(generation.mask, given, past + tokens) if mask is None and past else mask
    width = first_width if past and past != learned else None
    if generation is not None and side != "encoder":
        if generation.width is None and tokens is not None:
            generation.width = (past or 0) + tokens
        width = generation.width
    states = given.get("encoder_hidden_states")
    return PassFacts(
        mask=_tensor(mask),
        past=past,
        past_unknown=stateful and past is None,
        input_ids=_tensor(ids),
        position_ids=_tensor(given.get("position_ids")),
        embedded=embedded,
        prompt_width=width,
        prompt_mask=generation.mask if generation is not None and side != "encoder" else None,
        side=side,
        # Weakly: states are as large as an activation, and none outlives its pass because of a hook.
        encoder=weakref.ref(states) if isinstance(states, Tensor) else None,
        encoder_mask=_tensor(given.get("encoder_attention_mask")),
        generating=generation is not None,
        takes_mask=True,
        unreadable=None if mask is None or isinstance(mask, Tensor) else type(mask).__name__,
    )


def cache_length(cache: Any) -> int:
    """Tokens in a transformers cache, or in the tuple of (key, value) pairs that older models use."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)):
        return int(cache[0][0].shape[-2]) if cache else 0
    return int(cache.get_seq_length())


def _side(module: nn.Module, names: Sequence[str]) -> Literal["encoder", "decoder"] | None:
    attends = "encoder_hidden_states" in names
    if isinstance(decodes := getattr(module, "is_decoder", None), bool):  # T5: one class for both
        return "decoder" if decodes else "encoder"
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return "decoder" if attends else "encoder"
    return None


def virtual_tokens(module: Any) -> int:
    """Tokens of the prompt that PEFT has learned (prompt tuning, prefix tuning and their like) and puts before a text.

    A PeftModel is known by its config, so that nothing of PEFT is imported.
    """
    config = getattr(module, "active_peft_config", None)
    is_on = getattr(config, "is_prompt_learning", False) and not getattr(module, "_adapters_disabled", False)
    return int(config.num_virtual_tokens) if config is not None and is_on else 0


def _grown(prompt: Tensor | None, given: Mapping[str, Any], columns: int) -> Tensor | None:
    """The mask of a prompt (B, width) with what was generated since: (rows, columns)."""
    ids = given.get("input_ids")
    if prompt is None or not isinstance(ids, Tensor):
        return None
    mask = of_beams(prompt, len(ids))
    return nn.functional.pad(mask, (0, columns - mask.shape[1]), value=1)


def of_beams(values: Tensor, rows: int) -> Tensor:
    """Values of prompts ``(B, ...)`` for the beams or samples of each, which follow each other: ``(rows, ...)``."""
    return values.repeat_interleave(max(1, rows // max(1, len(values))), 0)


def _is_sequence(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() >= 2


def _one_mask(mask: Any) -> Any:
    """Models with several kinds of attention are given one mask for each kind; the full one shows every token."""
    return mask.get("full_attention", mask) if isinstance(mask, Mapping) else mask


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
