"""The facts of a pass, read from the call of its token module."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.facts import PassFacts, is_sequence
from mi_crow_lightning.hooks.passes.running_batch import RunningBatch
from mi_crow_lightning.hooks.passes.token_module import Signature

__all__ = ["Generation", "OuterCall", "of_beams", "read_facts", "with_masks_of_outer"]

OuterCall: TypeAlias = tuple[Signature, Mapping[str, Any]]
"""A running call of a module around a token module: its signature and the arguments, by parameter name."""

_BOUNDARIES = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens", "cu_seq_lens")  # of texts packed in one row
_SPARE = 128  # columns by which the mask of a prompt grows at a time
_STATES = ("cache_params", "state")  # caches of recurrent models, which do not say how many tokens they hold


@dataclass(eq=False)
class Generation:
    """A running call of ``generate``.

    Attributes:
        width: columns of the prompt, padding included; ``None`` until the first pass shows it.
        mask: the attention mask it was called with, ``(B, width)``.
        columns: how many columns each model that was first called with the prompt has received so far.
        caches: with guidance, the caches it uses, each with the prompt's width of its sequence. The first is that of
            the prompt; the second sequence has its own cache and prompt.
        second: the width of the first pass of a second sequence, whose cache is not known yet.
        guidance: the width of the prompt of classifier-free guidance, if it is used.
        uncached: how many passes each model has made without a cache.
        grown: the mask with more columns than were generated so far, all real: each pass takes a part of it.
    """

    width: int | None = None
    mask: Tensor | None = None
    columns: dict[nn.Module, int] = field(default_factory=dict)
    caches: list[tuple[Any, int]] = field(default_factory=list)
    second: int | None = None
    guidance: int | None = None
    uncached: dict[nn.Module, int] = field(default_factory=dict)
    grown: Tensor | None = None

    def prompt_of(
        self, module: nn.Module, cache: Any, past: int, tokens: int | None
    ) -> tuple[int | None, Tensor | None]:
        """Return the width and the mask of the prompt whose sequence a pass continues.

        Args:
            module: the model that makes the pass.
            cache: the cache that the pass was given; ``None`` if it was given none.
            past: the tokens in it.
            tokens: the tokens of the pass.
        """
        if self.width is None and tokens is not None:
            self.width = past + tokens
        if self.guidance is None or self.width is None or tokens is None or isinstance(cache, (tuple, list)):
            return self.width, self.mask
        if cache is None:  # without a cache at all, or the first pass of a second sequence
            if not self.caches:
                return (self.guidance, None) if self._is_guidance(module, tokens) else (self.width, self.mask)
            self.second = tokens
            return tokens, None
        for place, (known, width) in enumerate(self.caches):
            if known is cache:
                return width, self.mask if place == 0 else None
        is_second = bool(self.caches) and past in (0, self.second)
        self.caches.append((cache, (past or tokens) if is_second else self.width))
        return self.caches[-1][1], None if is_second else self.mask

    def _is_guidance(self, module: nn.Module, tokens: int) -> bool:
        """Return whether a pass without a cache is one of guidance, which follows each pass of the text.

        Both sequences grow by one token each time; a model that runs both as one batch makes no such passes.
        """
        before = self.uncached.get(module, 0)
        self.uncached[module] = before + 1
        return self.guidance is not None and before % 2 == 1 and tokens == self.guidance + before // 2

    def past_of(self, module: nn.Module, past: int | None, tokens: int, mask: Any) -> int | None:
        """Return how many tokens came before a pass; ``None`` if the module does not go on with the prompt.

        A cache may not know: the state of a recurrent model, or the empty cache of a hybrid model, does not count. The
        mask that ``generate`` passes on has a column for each token so far. Without one, a model has all the tokens
        that it received in its state; or it has no state, and receives the whole, growing sequence each time.

        Args:
            module: a token module.
            past: the tokens in its key-value cache; ``None`` if it takes none.
            tokens: the tokens of the pass.
            mask: the attention mask of the pass.
        """
        if past is not None and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= tokens:
            past = mask.shape[1] - tokens
        before = self.columns.get(module, 0)
        begins = (past or 0) + tokens in (self.width, (self.width or 0) + 1)  # XLNet and XLM append one to fill in
        if not before and not begins:
            return past
        if past is None:
            past = before if tokens < before or tokens == before == 1 else 0
        self.columns[module] = past + tokens
        return past

    def mask_so_far(self, module: nn.Module, rows: int) -> Tensor | None:
        """Return the mask of the prompt, grown by what was generated since, for a model that is not given it.

        Args:
            module: the token module of the running pass.
            rows: the rows of the pass.

        Returns:
            ``(rows, columns)``; ``None`` if the prompt has no mask, or the module does not go on with it.
        """
        columns = self.columns.get(module)
        if self.mask is None or columns is None or len(self.mask) > rows:
            return None
        grown = self.grown
        if grown is None or len(grown) != rows or grown.shape[1] < columns:
            mask = of_beams(self.mask, rows)
            grown = self.grown = nn.functional.pad(mask, (0, columns + _SPARE - mask.shape[1]), value=1)
        return grown[:, :columns]


def read_facts(
    module: nn.Module,
    given: Mapping[str, Any],
    signature: Signature,
    generation: Generation | None,
    first_width: int | None,
    learned: int = 0,
    kept: bool = False,
    acted: set[object] | None = None,
    batch: RunningBatch | None = None,
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
        batch: the batch that runs in this thread.
    """
    names = signature.names
    past = _cache_length(given.get("past_key_values")) if "past_key_values" in names else None
    side = signature.side
    ids, (embedded_rows, embedded) = _tokens_of(given, signature)
    tokens = ids.shape[1] if is_sequence(ids) else embedded
    mask = _one_mask(signature.mask_of(given))
    stateful = any(given.get(name) is not None for name in _STATES)
    if generation is not None and tokens is not None and side != "encoder":
        past = generation.past_of(module, past, tokens, mask)
    width = first_width if past and past != learned else None
    prompt_mask = None
    if generation is not None and side != "encoder":
        width, prompt_mask = generation.prompt_of(module, given.get("past_key_values"), past or 0, tokens)
    states = signature.keys_of(given)
    return PassFacts(
        mask=_tensor(mask),
        past=past,
        past_unknown=stateful and past is None,
        input_ids=_tensor(ids),
        position_ids=_tensor(given.get("position_ids")),
        boundaries=next((given[name] for name in _BOUNDARIES if isinstance(given.get(name), Tensor)), None),
        text_numbers=_tensor(given.get("seq_idx")),
        embedded=embedded,
        embedded_rows=embedded_rows,
        prompt_width=width,
        prompt_mask=prompt_mask,
        side=side,
        # A weak reference: states are as large as an activation, and no hook may keep one alive after its pass.
        encoder=weakref.ref(states) if isinstance(states, Tensor) else None,
        encoder_mask=_tensor(signature.keys_mask_of(given)),
        encoder_mask_is_padding=signature.padding_mask is not None,
        generating=generation is not None,
        guided=generation is not None and generation.guidance is not None,
        takes_mask=True,
        pad_ids=signature.pad_ids,
        mask_is_padding=signature.padding_mask is not None,
        unreadable=None if mask is None or isinstance(mask, Tensor) else type(mask).__name__,
        acted=acted,
        batch=batch,
        derived={} if kept else None,
    )


def _tokens_of(given: Mapping[str, Any], signature: Signature) -> tuple[Any, tuple[int | None, int | None]]:
    """Return the token IDs of a call, and the rows and tokens of its embeddings, or of the labels in their place."""
    ids, embeddings = signature.tokens_of(given)
    if ids is None and embeddings is None:
        embeddings = signature.source_of(given)  # there are as many tokens as labels
    if not is_sequence(embeddings):
        return ids, (None, None)
    first, second = embeddings.shape[:2]
    return ids, (second, first) if signature.tokens_first else (first, second)


def with_masks_of_outer(facts: PassFacts, calls: Sequence[OuterCall]) -> PassFacts:
    """Return the facts of a pass with the masks that it was not given itself, and a module around it was.

    Args:
        facts: the facts of the pass.
        calls: the running calls around the token module, innermost first.
    """
    if facts.mask is None and facts.unreadable is None and facts.side != "encoder":
        facts = facts.with_mask(_mask_of_outer(facts, calls))
    if facts.mask is None and facts.unreadable is None and facts.tokens is None and facts.side != "decoder":
        facts = facts.with_mask(_mask_of_samples(calls))
    if facts.encoder is not None and facts.encoder_mask is None:
        facts = facts.with_encoder_mask(_keys_mask_of_outer(facts, calls))
    return facts


def _mask_of_outer(facts: PassFacts, calls: Iterable[OuterCall]) -> Tensor | None:
    """Return the mask of a pass that a module around the token module was given, or that follows from its labels.

    A text's mask is not that of its translation: about a decoder, only modules that take two texts are asked.

    Args:
        facts: the facts of the pass, without a mask.
        calls: the running calls around the token module, innermost first.
    """
    decodes = facts.encoder is not None
    for outer, given in calls:
        mask: Tensor | None = (outer.translations_mask_of if decodes else outer.texts_mask_of)(given)
        if facts.is_of_tokens(mask):
            return mask
        decodes = decodes or given.get("encoder_hidden_states") is not None
    return None


def _mask_of_samples(calls: Iterable[OuterCall]) -> Tensor | None:
    """Return the mask of the samples of a sound, for layers that are not given that of their frames.

    It fits no layer, and so shows that padding counts, or that frames cannot be chosen.
    """
    for _, given in calls:
        sounds, mask = given.get("input_values"), given.get("attention_mask")
        if isinstance(sounds, Tensor) and sounds.dim() == 2 and isinstance(mask, Tensor) and mask.shape == sounds.shape:
            return mask
    return None


def _keys_mask_of_outer(facts: PassFacts, calls: Iterable[OuterCall]) -> Tensor | None:
    """Return the mask of the encoder's states that a decoder attends to, if a module around both was given it."""
    states = facts.encoder() if facts.encoder is not None else None
    if states is None:
        return None
    masks = (given.get("attention_mask") for outer, given in calls if outer.prefix)
    return next((mask for mask in masks if isinstance(mask, Tensor) and mask.shape == states.shape[:2]), None)


def of_beams(values: Tensor, rows: int) -> Tensor:
    """Repeat the value of each prompt ``(B, ...)`` for its beams or samples, which are adjacent: ``(rows, ...)``."""
    beams = rows // max(1, len(values))
    return values if beams < 2 else values.repeat_interleave(beams, 0)


def _cache_length(cache: Any) -> int:
    """Return how many tokens a transformers cache holds, or the tuple of (key, value) pairs of older models."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)):
        return int(cache[0][0].shape[-2]) if cache else 0
    return int(cache.get_seq_length())


def _one_mask(mask: Any) -> Any:
    """Return one of a model's masks by kind of attention; each shows every token of the pass, see `columns_of`."""
    if not isinstance(mask, Mapping):
        return mask
    return mask.get("full_attention", next(iter(mask.values()), None))


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
