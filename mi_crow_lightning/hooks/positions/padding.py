"""The real tokens of an activation, as opposed to padding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.pass_columns import mask_of_pass, only_themselves
from mi_crow_lightning.hooks.positions.streams import of_all_streams, one_stream, place_of_tokens
from mi_crow_lightning.hooks.positions.unmasked import warn_if_padded
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["are_generated", "real_tokens"]

_UNKNOWN = object()


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
        ``(B, T)`` bool; ``(B * T,)`` if the layer puts all tokens in one row, ``(T, B)`` or ``(S, B, T)`` if it puts
        tokens or streams first; ``None`` if every element counts, because there is no padding or ``x`` is not a
        sequence. Do not write to it.

    Raises:
        TokensUnknown: the user's ``token_mask`` does not fit the activation, or another mask does not and must.
    """
    kept = ctx.facts.derived
    if kept is None or ctx.axes is not Axes.USUAL or ctx.place.queries is not None:
        return _real(x, ctx, must_fit)[0]
    key = (x.shape, x.get_device())
    found = kept.get(key, _UNKNOWN)
    if found is _UNKNOWN:
        found, fits = _real(x, ctx, must_fit)
        if fits:  # otherwise each layer reports by name that it does not
            kept[key] = found
    return found  # type: ignore[no-any-return]


def are_generated(x: Tensor, ctx: HookContext) -> bool:
    """Return whether an activation holds tokens that ``generate`` has added, and all of them are known to be real."""
    facts = ctx.facts
    of_tokens = ctx.axes is Axes.USUAL and x.dim() == 3
    return of_tokens and facts.are_generated and x.shape[:2] == (facts.rows, facts.tokens)


def _real(x: Tensor, ctx: HookContext, must_fit: bool) -> tuple[Tensor | None, bool]:
    """Return the real tokens, and whether the mask fits or is not needed."""
    try:
        return _fitting(x, ctx), True
    except _Unfit as unfit:
        if must_fit and unfit.refused is not None:
            raise TokensUnknown(unfit.refused) from None
        warn(unfit.warning, InexactWarning, stacklevel=4)
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
    place = place_of_tokens(x, ctx.facts, ctx.axes) if x.dim() > 3 else None
    if place is not None:
        real = _fitting(one_stream(x, place), ctx)
        return None if real is None else of_all_streams(real, x, place)
    given = ctx.running.token_mask
    if given is not None and not ctx.facts.generating:
        mask = given(ctx.batch)
        if x.dim() == 3 and ctx.axes is Axes.USUAL and mask.shape != x.shape[:2]:
            raise TokensUnknown(
                f"token_mask returned shape {tuple(mask.shape)} for {ctx.layer!r}, whose activation has shape "
                f"{tuple(x.shape)}: it must return (batch, tokens) = {tuple(x.shape[:2])}"
            )
        return _laid_on(mask.to(x.device) != 0, x, ctx)
    _check_queries(x, ctx)
    if ctx.facts.unreadable is not None:
        raise TokensUnknown(
            f"the attention mask that {ctx.layer!r}'s model was called with is a {ctx.facts.unreadable}, which does "
            "not show the padding. Pass HookCallback(token_mask=...), or use another attention implementation."
        )
    facts = ctx.facts
    if are_generated(x, ctx):
        return None  # of the mask only the prompt's columns hold padding
    if facts.mask is not None:
        real = _laid_on(mask_of_pass(x, facts), x, ctx)
        if real is None or facts.mask.dim() == 2 or facts.prompt_mask is not None or x.dim() != 3:
            return real
        return _without_guards(real, facts.mask, ctx)
    found = _batch_mask(x, ctx) if not facts.takes_mask or facts.unseen or _is_of_batch(facts, ctx.batch) else None
    if found is None:
        _check_shape(x, ctx)
        warn_if_padded(ctx)
    return found


def _is_of_batch(facts: PassFacts, batch: object) -> bool:
    """Return whether a model was called with the batch's own tokens, so that the batch's mask is theirs."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return not facts.generating and not facts.past and ids is not None and ids is facts.input_ids


def _without_guards(real: Tensor, mask: Tensor, ctx: HookContext) -> Tensor:
    """Return real tokens without padding that sees itself, as a guard against NaN, in a mask of pairs.

    The batch's own mask shows which of the tokens that see only themselves are padding. Without one they count, and a
    warning says so, for which the host waits for the device; a graph cannot.

    Args:
        real: ``(B, T)`` bool.
        mask: the mask of pairs.
        ctx: the hook's context.
    """
    alone = only_themselves(mask, ctx.facts.past or 0)
    if alone is None or alone.shape != real.shape:
        return real
    given = ctx.batch.get("attention_mask") if isinstance(ctx.batch, Mapping) else None
    if isinstance(given, Tensor) and given.shape == real.shape and not ctx.facts.generating:
        return real & (~alone | (given != 0)).to(real.device)
    if not torch.compiler.is_compiling() and alone.any():
        warn(
            f"{ctx.layer!r}: {int(alone.sum())} tokens see only themselves in the attention mask {tuple(mask.shape)}, "
            "which does not show whether they are padding, so they count. Pass HookCallback(token_mask=...) to say "
            "which tokens are real.",
            InexactWarning,
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


def _check_queries(x: Tensor, ctx: HookContext) -> None:
    """Refuse an activation that may hold one vector for each learned query, and not for each token.

    Raises:
        _Unfit: it may.
    """
    queries = ctx.place.queries
    if queries is None or x.dim() != 3 or x.shape[1] != ctx.facts.tokens:
        return
    why = queries.instead_of(x.shape[1], ctx.args, ctx.kwargs)
    if why is not None:
        unfit = f"{ctx.layer!r}: {why}"
        raise _Unfit(unfit, f"{unfit}, so tokens cannot be chosen: use tokens='all', or choose another layer")


def _laid_on(real: Tensor, x: Tensor, ctx: HookContext) -> Tensor | None:
    """Return ``real`` (B, T) in the form of ``x``; ``None`` if ``x`` has one vector for each row.

    Raises:
        _Unfit: ``real`` describes other tokens.
    """
    axes = ctx.axes if ctx.axes is Axes.USUAL else ctx.axes.of(x)
    if axes is Axes.PACKED:
        return None  # there is no padding in it
    if axes is not Axes.USUAL:
        if axes.tokens_first and real.shape == x.shape[1::-1]:
            return real.to(x.device).T
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
    warn(
        f"{ctx.layer!r}: {why}, so every token counts, including padding. "
        "Pass HookCallback(token_mask=...) to say which tokens are real.",
        InexactWarning,
        stacklevel=5,
    )
