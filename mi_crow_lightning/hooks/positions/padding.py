"""The real tokens of an activation, as opposed to padding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts

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
    if ctx.facts.mask is not None:
        return _laid_on(_mask_of_pass(ctx.facts.mask, x, ctx.facts), x, ctx)
    return None if ctx.facts.takes_mask else _batch_mask(x, ctx)


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
    so_far = _columns_of(facts.mask).to(real.device)[:, : first + tokens]
    if so_far.shape[1] != first + tokens:
        raise TokensUnknown(
            f"the attention mask {tuple(facts.mask.shape)} does not cover the {first} tokens before this "
            "pass, so positions cannot be counted: pass the mask of the whole sequence"
        )
    return so_far.expand(rows, -1)


def _columns_of(mask: Tensor) -> Tensor:
    """Return an attention mask in any of the usual forms as (B, columns) bool."""
    if mask.dim() == 2:
        return mask != 0
    # (B, 1, Tq, Tk) or (B, Tq, Tk): the last query may see every real token
    last = mask.reshape(mask.shape[0], -1, *mask.shape[-2:])[:, 0, -1]
    # An additive mask holds 0 (or a small bias) for real tokens, and a very negative number for the rest.
    return last > -1000.0 if last.is_floating_point() else last != 0


def _mask_of_pass(mask: Tensor, x: Tensor, facts: PassFacts) -> Tensor:
    """Return an attention mask in any of the usual forms, cut to the columns of this pass: (B, T) bool.

    If its columns are not those of the cache and the pass, it is returned whole and will not fit: the second
    dimension of the activation then is not a sequence of these tokens (but of latents, for example).
    """
    tokens = tokens_of_pass(x, facts) if facts.tokens is not None or x.dim() >= 3 else mask.shape[-1]
    real = _columns_of(mask)
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
        return None
    mask = ctx.batch.get("attention_mask")
    if isinstance(mask, Tensor) and (mask.shape == x.shape[:2] or ctx.axes is not Axes.USUAL):
        return _laid_on(mask != 0, x, ctx)
    if isinstance(mask, Tensor) and mask.shape == x.shape[1::-1]:
        raise _Unfit(f"{ctx.layer!r}: the batch's attention mask {tuple(mask.shape)} lies across {tuple(x.shape)}")
    token_ids = ctx.batch.get("input_ids")
    if mask is None and isinstance(token_ids, Tensor) and token_ids.shape == x.shape[:2]:
        warnings.warn(
            f"{ctx.layer!r}: neither the model nor the batch has an attention mask, so every token counts, "
            "including padding. Pass HookCallback(token_mask=...) to say which tokens are real.",
            stacklevel=2,
        )
    return None
