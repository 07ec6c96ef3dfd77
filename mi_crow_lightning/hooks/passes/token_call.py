"""The facts of a pass, read from the call of its token module."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.facts import PassFacts, is_sequence
from mi_crow_lightning.hooks.passes.token_module import TOKEN_INPUTS, Signature

__all__ = ["Generation", "of_beams", "read_facts"]

_STATES = ("cache_params", "state")  # caches of recurrent models, which do not say how many tokens they hold


@dataclass(eq=False)
class Generation:
    """A running call of ``generate``.

    Attributes:
        width: columns of the prompt, padding included; ``None`` until the first pass shows it.
        mask: the attention mask it was called with, ``(B, width)``.
        columns: how many columns each model without a key-value cache has received so far.
    """

    width: int | None = None
    mask: Tensor | None = None
    columns: dict[nn.Module, int] = field(default_factory=dict)

    def state_length(self, module: nn.Module, tokens: int) -> int:
        """Return how many tokens a recurrent model's state holds before a pass: all tokens it has received, or none.

        Without its state the model receives the whole, growing sequence each time.
        """
        before = self.columns.get(module, 0)
        past = before if tokens <= before else 0
        self.columns[module] = past + tokens
        return past


def read_facts(
    module: nn.Module,
    given: Mapping[str, Any],
    signature: Signature,
    generation: Generation | None,
    first_width: int | None,
    learned: int = 0,
    kept: bool = False,
    acted: set[object] | None = None,
) -> PassFacts:
    """Read the facts of a call.

    Args:
        module: the token module.
        given: the arguments of its call, by parameter name.
        signature: its signature.
        generation: the running call of ``generate``, if there is one.
        first_width: tokens of the first pass with an empty cache, in a user's own decoding loop.
        learned: tokens of a learned prompt, which PEFT may put into the cache.
        kept: whether tensors that follow from the facts are kept with them.
        acted: the set that collects the sites whose hook has its effect in the pass.
    """
    names, prefix = signature.names, signature.prefix
    past = _cache_length(given.get("past_key_values")) if "past_key_values" in names else None
    side = signature.side
    ids, embeddings = (given.get(f"{prefix}{name}") for name in TOKEN_INPUTS)
    embedded = embeddings.shape[1] if is_sequence(embeddings) else None
    tokens = ids.shape[1] if is_sequence(ids) else embedded
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
        # A weak reference: states are as large as an activation, and no hook may keep one alive after its pass.
        encoder=weakref.ref(states) if isinstance(states, Tensor) else None,
        encoder_mask=_tensor(given.get("encoder_attention_mask")),
        generating=generation is not None,
        takes_mask=True,
        unreadable=None if mask is None or isinstance(mask, Tensor) else type(mask).__name__,
        acted=acted,
        derived={} if kept else None,
    )


def of_beams(values: Tensor, rows: int) -> Tensor:
    """Repeat the value of each prompt ``(B, ...)`` for its beams or samples, which are adjacent: ``(rows, ...)``."""
    return values.repeat_interleave(max(1, rows // max(1, len(values))), 0)


def _cache_length(cache: Any) -> int:
    """Return how many tokens a transformers cache holds, or the tuple of (key, value) pairs of older models."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)):
        return int(cache[0][0].shape[-2]) if cache else 0
    return int(cache.get_seq_length())


def _grown(prompt: Tensor | None, given: Mapping[str, Any], columns: int) -> Tensor | None:
    """Return the mask of a prompt (B, width), extended by the tokens generated since: (rows, columns)."""
    ids = given.get("input_ids")
    if prompt is None or not isinstance(ids, Tensor):
        return None
    mask = of_beams(prompt, len(ids))
    return nn.functional.pad(mask, (0, columns - mask.shape[1]), value=1)


def _one_mask(mask: Any) -> Any:
    """Return the full-attention mask, which shows every token, from a model's masks by kind of attention."""
    return mask.get("full_attention", mask) if isinstance(mask, Mapping) else mask


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
