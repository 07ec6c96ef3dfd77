"""The real tokens of an activation, as opposed to padding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.token_call import of_beams
from mi_crow_lightning.hooks.positions.mask_forms import columns_of, only_themselves
from mi_crow_lightning.hooks.positions.unmasked import warn_if_padded

__all__ = ["first_column", "real_so_far", "real_tokens", "tokens_of_pass"]

_UNKNOWN = object()


def tokens_of_pass(x: Tensor, facts: PassFacts) -> int:
    """Return the number of tokens per row in the running pass: of the model's call if known, otherwise of ``x``."""
    return facts.tokens if facts.tokens is not None else x.shape[1]


def first_column(x: Tensor, facts: PassFacts) -> int:
    """Return the column, in the padded sequence, of the first token of ``x`` (B, T, D).

    A head that is called only for the last token, as ``generate`` does, sees one token of a longer pass.
    """
    skipped = tokens_of_pass(x, facts) - 1 if x.shape[1] == 1 else 0
    return (facts.past or 0) + skipped


def real_tokens(x: Tensor, ctx: HookContext, must_fit: bool = False) -> Tensor | None:
    """Return the tokens of ``x`` that are not padding.

    The first of these that exists decides: the user's ``token_mask`` (which describes the batch as it was
    loaded, so it is not used inside ``generate``), the mask that the layer's model was called with, the batch's
    ``attention_mask``. A mask is computed once for each pass and shape; all hooks of the pass share it.

    Args:
        x: the activation.
        ctx: the hook's context.
        must_fit: whether a mask that does not fit is an error, rather than a warning that every element counts.

    Returns:
        ``(B, T)`` bool, or ``(B * T,)`` if the layer puts all tokens in one row; ``None`` if every element
        counts, because there is no padding or ``x`` is not a sequence. Do not write to it.

    Raises:
        TokensUnknown: the user's ``token_mask`` does not fit the activation, or another mask does not and must.
    """
    kept = ctx.facts.derived
    if kept is None or ctx.axes is not Axes.USUAL:
        return _real(x, ctx, must_fit)[0]
    key = (x.shape, x.get_device())
    found = kept.get(key, _UNKNOWN)
    if found is _UNKNOWN:
        found, fits = _real(x, ctx, must_fit)
        if fits:  # otherwise each layer reports by name that it does not
            kept[key] = found
    return found  # type: ignore[no-any-return]


def _real(x: Tensor, ctx: HookContext, must_fit: bool) -> tuple[Tensor | None, bool]:
    """Return the real tokens, and whether the mask fits or is not needed."""
    try:
        return _fitting(x, ctx), True
    except _Unfit as unfit:
        if must_fit and unfit.refused is not None:
            raise TokensUnknown(unfit.refused) from None
        warnings.warn(unfit.warning, stacklevel=4)
        return None, False


class _Unfit(Exception):
    """A mask that does not fit the activation, so that every element counts.

    Args:
        why: why it does not fit.
        refused: the error if a mask must fit; ``None`` if a warning is enough.
    """

    def __init__(self, why: str, refused: str | None = None) -> None:
        super().__init__(why)
        self.warning = f"{why}, so every element counts, including padding. Watch another layer if that matters."
        self.refused = refused


def _fitting(x: Tensor, ctx: HookContext) -> Tensor | None:
    given = ctx.running.token_mask
    if given is not None and not ctx.facts.generating:
        mask = given(ctx.batch)
        if x.dim() == 3 and ctx.axes is Axes.USUAL and mask.shape != x.shape[:2]:
            raise TokensUnknown(
                f"token_mask returned shape {tuple(mask.shape)} for {ctx.layer!r}, whose activation has shape "
                f"{tuple(x.shape)}: it must return (batch, tokens) = {tuple(x.shape[:2])}"
            )
        return _laid_on(mask.to(x.device) != 0, x, ctx)
    if ctx.facts.unreadable is not None:
        raise TokensUnknown(
            f"the attention mask that {ctx.layer!r}'s model was called with is a {ctx.facts.unreadable}, which does "
            "not show the padding. Pass HookCallback(token_mask=...), or use another attention implementation."
        )
    facts = ctx.facts
    if facts.mask is not None:
        real = _laid_on(_mask_of_pass(x, facts), x, ctx)
        return real if real is None else _without_guards(real, x, ctx)
    found = _batch_mask(x, ctx) if not facts.takes_mask or facts.unseen or _is_of_batch(facts, ctx.batch) else None
    if found is None:
        _check_shape(x, ctx)
        warn_if_padded(ctx)
    return found


def _is_of_batch(facts: PassFacts, batch: object) -> bool:
    """Return whether a model was called with the batch's own tokens, so that the batch's mask is theirs."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return not facts.generating and not facts.past and ids is not None and ids is facts.input_ids


def _without_guards(real: Tensor, x: Tensor, ctx: HookContext) -> Tensor:
    """Return real tokens of a mask of pairs without those that the batch's own mask shows to be padding.

    Raises:
        _Unfit: some tokens see only themselves, and no other mask shows whether they are padding.
    """
    mask = ctx.facts.mask
    if mask is None or mask.dim() == 2 or x.dim() != 3 or torch.compiler.is_compiling():
        return real
    alone = only_themselves(mask)
    if alone is None or not alone.any():
        return real
    given = ctx.batch.get("attention_mask") if isinstance(ctx.batch, Mapping) else None
    if isinstance(given, Tensor) and given.shape == real.shape and not ctx.facts.generating:
        return real & (given.to(real.device) != 0)
    warnings.warn(
        f"{ctx.layer!r}: {int(alone.sum())} tokens see only themselves in the attention mask {tuple(mask.shape)}, "
        "which does not show whether they are padding, so they count. Pass HookCallback(token_mask=...) to say which "
        "tokens are real.",
        stacklevel=5,
    )
    return real


def _check_shape(x: Tensor, ctx: HookContext) -> None:
    """Refuse an activation whose shape shows that it is not a sequence of the tokens that the model was called with.

    Raises:
        _Unfit: its rows or columns are others.
    """
    rows, tokens = ctx.facts.rows, ctx.facts.tokens
    if rows is None or tokens is None or x.dim() != 3 or x.shape[1] == 1 or ctx.axes is not Axes.USUAL:
        return
    if x.shape[1] != tokens or x.shape[0] not in (1, rows):
        unfit = f"{ctx.layer!r} gives {tuple(x.shape)} and the model was called with (batch, tokens) = {(rows, tokens)}"
        raise _Unfit(unfit, f"{unfit}, so tokens cannot be chosen: use tokens='all', or choose another layer")


def real_so_far(shape: tuple[int, int], first: int, real: Tensor, facts: PassFacts) -> Tensor:
    """Return the real tokens of the whole sequence up to the end of this pass, including those in the cache.

    Args:
        shape: rows and tokens of the pass at a layer, ``(B, T)``.
        first: the column of the first token.
        real: the real tokens of this pass, ``(B, T)`` bool.
        facts: the facts of the pass.

    Returns:
        ``(B, past + T)`` bool.

    Raises:
        TokensUnknown: the model was called with a mask of this pass only.
    """
    rows, tokens = shape
    if first == 0:
        return real
    if facts.mask is None:
        return real.new_ones(rows, first + tokens)
    grown = _grown_prompt(facts, first + tokens) if facts.mask.dim() > 2 else None
    known = columns_of(facts.mask, facts.mask_is_padding) if grown is None else grown
    so_far = known.to(real.device)[:, : first + tokens]
    if so_far.shape[1] != first + tokens:
        raise TokensUnknown(
            f"the attention mask {tuple(facts.mask.shape)} does not cover the {first} tokens before this "
            "pass, so positions cannot be counted: pass the mask of the whole sequence"
        )
    return so_far.expand(rows, -1)


def _grown_prompt(facts: PassFacts, columns: int) -> Tensor | None:
    """Return the real columns of the sequence so far, ``(rows, columns)``, from the mask of the prompt of ``generate``.

    A mask of pairs does not show them all: a window hides earlier tokens, and a static cache of a window writes new
    tokens over old ones, so that its columns are not those of the sequence. What is generated is real.
    """
    prompt, rows = facts.prompt_mask, facts.rows
    if prompt is None or rows is None or prompt.shape[1] > columns or len(prompt) > rows:
        return None
    return nn.functional.pad(of_beams(prompt, rows) != 0, (0, columns - prompt.shape[1]), value=True)


def _mask_of_pass(x: Tensor, facts: PassFacts) -> Tensor:
    """Return the attention mask, in any of the usual forms, cut to the columns of this pass: (B, T) bool.

    If its columns are not those of the cache and the pass, or its queries not those of the pass, it is returned whole
    and will not fit: the second dimension of the activation then is not a sequence of these tokens (but of latents, or
    of queries that attend to them).
    """
    mask = facts.mask
    assert mask is not None
    if mask.dim() > 2 and facts.past is not None and facts.tokens is not None:
        grown = _grown_prompt(facts, facts.past + facts.tokens)
        if grown is not None:
            return grown[:, facts.past :]
    real = columns_of(mask, facts.mask_is_padding)
    if facts.tokens is None and mask.dim() > 2:  # nothing but their number shows that they are the same tokens
        return real
    tokens = tokens_of_pass(x, facts) if facts.tokens is not None or x.dim() >= 3 else mask.shape[-1]
    if mask.dim() > 2 and mask.shape[-2] not in (1, tokens):
        return real
    if mask.dim() == 2 and not facts.past_unknown and real.shape[1] != (facts.past or 0) + tokens:
        return real
    return real[:, -tokens:] if facts.past is None else real[:, facts.past : facts.past + tokens]


def _laid_on(real: Tensor, x: Tensor, ctx: HookContext) -> Tensor | None:
    """Return ``real`` (B, T) in the form of ``x``; ``None`` if ``x`` has one vector for each row.

    Raises:
        _Unfit: ``real`` describes other tokens.
    """
    axes = ctx.axes if ctx.axes is Axes.USUAL else ctx.axes.of(x)
    if axes is Axes.PACKED:
        return None  # there is no padding in it
    if axes is not Axes.USUAL:
        raise _Unfit(f"{ctx.layer!r} gives {axes.value}, which an attention mask does not fit")
    real = real.to(x.device)
    if x.dim() == 3:
        if real.shape[0] == 1:
            real = real.expand(x.shape[0], -1)
        if x.shape[1] == 1:
            real = real[:, -1:]
        if real.shape == x.shape[:2]:
            return real
    elif x.dim() == 2:
        if len(x) == real.numel() and real.shape[1] > 1:
            return real.reshape(-1)
        if len(x) == len(real):
            return None  # one vector for each row, as from a pooler: no tokens
    unfit = f"{ctx.layer!r}: the attention mask {tuple(real.shape)} does not fit the activation {tuple(x.shape)}"
    raise _Unfit(unfit, f"{unfit}, so tokens cannot be chosen: use tokens='all', or choose another layer")


def _batch_mask(x: Tensor, ctx: HookContext) -> Tensor | None:
    """Return the batch's own mask, for models that take none; warn if there are tokens but no mask."""
    if x.dim() != 3 or not isinstance(ctx.batch, Mapping):
        if ctx.facts.unseen and x.dim() == 3:
            _say_unknown(ctx, "the model around it was not called, and there is no batch with a mask")
        return None
    mask = ctx.batch.get("attention_mask")
    if isinstance(mask, Tensor) and (mask.shape == x.shape[:2] or ctx.axes is not Axes.USUAL):
        return _laid_on(mask != 0, x, ctx)
    if isinstance(mask, Tensor) and mask.shape == x.shape[1::-1]:
        raise _Unfit(f"{ctx.layer!r}: the batch's attention mask {tuple(mask.shape)} lies across {tuple(x.shape)}")
    token_ids = ctx.batch.get("input_ids")
    if ctx.facts.takes_mask and not ctx.facts.unseen:
        return None  # the model could have been given a mask, and usually is not where nothing is padded
    if mask is None and isinstance(token_ids, Tensor) and token_ids.shape == x.shape[:2]:
        _say_unknown(ctx, "neither the model nor the batch has an attention mask")
    elif ctx.facts.unseen:
        _say_unknown(ctx, "the model around it was not called, and the batch has no attention mask that fits")
    return None


def _say_unknown(ctx: HookContext, why: str) -> None:
    warnings.warn(
        f"{ctx.layer!r}: {why}, so every token counts, including padding. "
        "Pass HookCallback(token_mask=...) to say which tokens are real.",
        stacklevel=5,
    )
