"""Which positions a hook reads or edits.

`Tokens` turns a context and an activation into a mask ``(B, T)``. Padding is in none of them. Columns are
counted in the padded sequence, across the decode steps of a key-value cache, and a column is *prompt*
while it is among those that ``generate`` was called with. Outside ``generate`` the first pass with an
empty cache is the prompt, so in training every token is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.choices import not_known
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.padding import first_column, real_tokens

__all__ = ["Tokens", "put_where"]


class Tokens:
    """A choice of positions: ``"all"``, ``"prompt"``, ``"generated"`` or ``"last"``.

    - ``all``: every real token.
    - ``prompt``: the tokens that were there before the first one was generated.
    - ``generated``: those after. For an edit this includes the last token of the prompt, because its
      activation is what produces the first generated token.
    - ``last``: the last real token of each row: the end of the prompt, then each generated token. For an
      edit the same as ``generated``.

    Raises:
        ValueError: ``which`` is none of these.

    >>> Tokens("generated")
    Tokens('generated')
    """

    def __init__(self, which: str = "all") -> None:
        if which not in _SELECT:
            raise not_known("tokens", which, _SELECT)
        self.which = which

    @classmethod
    def of(cls, value: Tokens | str) -> Tokens:
        """``value`` itself, or the `Tokens` that a string names."""
        if isinstance(value, Tokens):
            return value
        if isinstance(value, str):
            return cls(value)
        raise TypeError(f"tokens={value!r} must be a name such as 'generated', or Tokens(...)")

    def mask(self, x: Tensor, ctx: HookContext, editing: bool = False) -> Tensor | None:
        """The chosen positions of an activation.

        Args:
            x: the activation, ``(B, T, D)`` where it is a sequence.
            ctx: the hook's context.
            editing: whether the positions are to be edited rather than read.

        Returns:
            ``(B, T)`` bool; ``None`` when every element of ``x`` is chosen.

        Raises:
            TokensUnknown: ``x`` is no sequence of tokens, and other than all of it was asked for.
        """
        if ctx.recomputing and ctx.facts.superseded:
            raise TokensUnknown(
                f"gradient checkpointing runs {ctx.layer!r} again for a pass that other passes, with other tokens, "
                "followed before its backward pass, so which tokens were edited cannot be told. Run backward after "
                "each pass, hook a layer outside of the checkpointed ones, or train without checkpointing."
            )
        real = real_tokens(x, ctx)
        if self.which == "all":
            return real
        if x.dim() != 3:
            raise TokensUnknown(
                f"tokens={self.which!r} needs an activation (batch, tokens, features), and {ctx.layer!r} has "
                f"shape {tuple(x.shape)}: use tokens='all', or choose another layer"
            )
        return _SELECT[self.which](_span(x, real, ctx), editing)

    def __repr__(self) -> str:
        return f"Tokens({self.which!r})"


class _Span(NamedTuple):
    """The tokens of one pass: where they lie in the padded sequence, and which are real."""

    real: Tensor  # (B, T) bool
    columns: Tensor  # (T,)
    prompt_width: int
    has_prompt_end: bool  # whether the pass reaches the prompt's last column


def _span(x: Tensor, real: Tensor | None, ctx: HookContext) -> _Span:
    tokens = x.shape[1]
    first = first_column(x, ctx.facts)
    end = first + tokens
    width = end if ctx.facts.prompt_width is None else ctx.facts.prompt_width
    if real is None:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    columns = torch.arange(first, end, device=x.device)
    return _Span(real, columns, width, has_prompt_end=end >= width)


def _prompt(span: _Span, editing: bool) -> Tensor:
    return span.real & (span.columns < span.prompt_width)


def _generated(span: _Span, editing: bool) -> Tensor:
    generated = span.real & (span.columns >= span.prompt_width)
    if editing and span.has_prompt_end:
        return generated | _last_of_rows(_prompt(span, editing))
    return generated


def _last(span: _Span, editing: bool) -> Tensor:
    if editing:  # each generated token was the last one once, and a pass without a cache shows them all again
        return _generated(span, editing)
    # A chunk in the middle of a prompt has no last token yet.
    return _last_of_rows(span.real) if span.has_prompt_end else torch.zeros_like(span.real)


def _last_of_rows(chosen: Tensor) -> Tensor:
    """Of each row of ``chosen`` (B, T), only its last True."""
    after = chosen.flip(1).cumsum(1).flip(1)  # how many are chosen from here on
    return chosen & (after == 1)


_SELECT: dict[str, Callable[[_Span, bool], Tensor]] = {
    "all": lambda span, editing: span.real,
    "prompt": _prompt,
    "generated": _generated,
    "last": _last,
}


def put_where(mask: Tensor | None, edited: Tensor, x: Tensor) -> Tensor:
    """``edited`` at the chosen positions, ``x`` elsewhere, bit-equal.

    Args:
        mask: ``(B, T)`` bool, or ``None`` for every position.
        edited: of the shape of ``x``.
        x: ``(B, T, ...)``.
    """
    if mask is None or edited.shape != x.shape or edited.dtype != x.dtype:
        return edited  # a wrong shape or dtype is the controller's to refuse, with a message of its own
    # Not x + mask * delta: that turns -0.0 into 0.0 where the mask is off.
    return torch.where(mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), edited, x)
