"""What the call of a language model says about its tokens: read once a pass, at the layer's token module."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

__all__ = ["Generation", "PassFacts", "parameters_of", "read_facts", "token_module"]

_TOKEN_INPUTS = ("input_ids", "inputs_embeds")


# Compared by identity: in a recompute a layer gets the very facts of the pass that is recomputed.
@dataclass(frozen=True, eq=False)
class PassFacts:
    """What the call of the layer's model says about its tokens.

    Attributes:
        mask: the attention mask as it was passed, ``None`` when every token is real.
        tokens: tokens of each row in this pass; ``None`` where that cannot be told.
        past: tokens in the key-value cache before this pass; ``None`` when the model takes no cache.
        input_ids: the token IDs ``(B, T)`` of this pass; ``None`` when it was called with embeddings.
        position_ids: the position IDs as they were passed.
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
    tokens: int | None = None
    past: int | None = None
    input_ids: Tensor | None = None
    position_ids: Tensor | None = None
    prompt_width: int | None = None
    prompt_mask: Tensor | None = None
    side: Literal["encoder", "decoder"] | None = None
    encoder: weakref.ref[Tensor] | None = None
    encoder_mask: Tensor | None = None
    generating: bool = False
    takes_mask: bool = False
    unreadable: str | None = None
    lost: bool = False

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
    """

    width: int | None = None
    mask: Tensor | None = None


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the module's ``forward``, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def token_module(ancestors: Sequence[nn.Module]) -> nn.Module | None:
    """Of a layer's ancestors, innermost first, the one whose call tells which tokens are real.

    The innermost that takes token IDs or embeddings beside an ``attention_mask``, else the innermost with a
    mask. (An inner mask may speak of keys, as in cross attention, and an outer one of another model's tokens.)
    """
    with_mask = [module for module in ancestors if "attention_mask" in parameters_of(module)]
    for module in with_mask:
        if any(name in parameters_of(module) for name in _TOKEN_INPUTS):
            return module
    return with_mask[0] if with_mask else None


def read_facts(
    module: nn.Module,
    given: Mapping[str, Any],
    names: Sequence[str],
    generation: Generation | None,
    first_width: int | None,
) -> PassFacts:
    """Read the facts of a call.

    Args:
        module: the token module.
        given: the arguments of its call, by the name of the parameter.
        names: the parameters of its ``forward``.
        generation: the running ``generate``, if one runs.
        first_width: tokens of the first pass with an empty cache, in a decoding loop of the user's own.
    """
    past = cache_length(given.get("past_key_values")) if "past_key_values" in names else None
    side, tokens = _side(module, names), _tokens(given)
    width = first_width if past else None
    if generation is not None and side != "encoder":
        if generation.width is None and tokens is not None:
            generation.width = (past or 0) + tokens
        width = generation.width
    states, mask = given.get("encoder_hidden_states"), _one_mask(given.get("attention_mask"))
    return PassFacts(
        mask=_tensor(mask),
        tokens=tokens,
        past=past,
        input_ids=_tensor(given.get("input_ids")),
        position_ids=_tensor(given.get("position_ids")),
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


def _tokens(given: Mapping[str, Any]) -> int | None:
    for name in _TOKEN_INPUTS:
        value = given.get(name)
        if isinstance(value, Tensor) and value.dim() >= 2:
            return value.shape[1]
    return None


def _one_mask(mask: Any) -> Any:
    """Models with several kinds of attention are given one mask for each kind; the full one shows every token."""
    return mask.get("full_attention", mask) if isinstance(mask, Mapping) else mask


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
