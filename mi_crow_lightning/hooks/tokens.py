"""The choice of the positions that a hook reads or edits.

`Tokens` turns a context and an activation into a mask ``(B, T)``, which never includes padding. ``positions/span.py``
defines the terms: the prompt is what ``generate`` was called with. Outside ``generate`` it is the first pass with an
empty cache, so in training every token belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from mi_crow_lightning._arguments import is_finite, listed, one_of, plain, whole
from mi_crow_lightning._joined import folded, rejoined, steps_of, written
from mi_crow_lightning._shown import shown
from mi_crow_lightning.choices import TokensName
from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.padding import are_generated, real_tokens
from mi_crow_lightning.hooks.positions.span import Span
from mi_crow_lightning.hooks.positions.streams import of_all_streams, one_stream, place_of_tokens

__all__ = ["AllOf", "AnyOf", "Not", "Tokens", "TokensLike", "put_where"]

_LARGEST = 2**63 - 1
_NAMES: tuple[TokensName, ...] = get_args(TokensName)
_MASSIVE = 4.0  # medians


class Tokens:
    """A choice of positions, given by one of the arguments. Combine choices with ``&``, ``|`` and ``~``.

    In a configuration file, combine them with this module's `AllOf`, `AnyOf` and `Not`.

    Positions count real tokens from 0, across decode steps; negative positions count from the end of the prompt,
    so ``-1`` is its last token. In training all tokens are prompt. If several texts are packed in a row and the
    model is called with position IDs that start again with each text, positions count within each text. In models
    with an encoder and a decoder, they count on the side of the layer.

    Args:
        which: by name,

            - ``"all"``: every real token;
            - ``"prompt"``: the tokens before the first generated one;
            - ``"generated"``: the tokens after the prompt. For an edit this includes the last token of the prompt,
              because its activation produces the first generated token;
            - ``"last"``: the last real token of each row: the end of the prompt, then each generated token. For
              an edit this is the same as ``"generated"``;
            - ``"ordinary"``: every real token but massive ones, the same as ``ordinary=4.0``.
        positions: the tokens at these positions; a list, a tensor, or any other collection of whole numbers.
        window: ``(start, stop)``, from start up to but not including stop, as in a slice; ``None`` for an open end.
        ids: the tokens with these IDs, in any of the forms of ``positions``.
        where: a function ``(x, ctx) -> (B, T)`` bool of the activation and the hook's context.
        ordinary: the tokens whose Euclidean norm at the layer is below this multiple of the median norm of the pass's
            real tokens; above 1. Language models have a few *massive* tokens, often but not always the first of a
            text, whose norms are a hundred times larger and would dominate a mean (Sun et al., 2024, arXiv 2402.17762).
            A decode step is a pass of one token a row, with its median over the rows.

    Raises:
        ValueError, TypeError: more than one argument was given, or its value is not one of the above.

    Examples:
        >>> Tokens("generated")
        Tokens('generated')
        >>> Tokens(window=(-8, None)) & ~Tokens(ids={2})
        Tokens(window=(-8, None)) & ~Tokens(ids=[2])
    """

    def __init__(
        self,
        which: TokensName | None = None,
        *,
        positions: Iterable[int] | None = None,
        window: Sequence[int | None] | None = None,
        ids: Iterable[int] | None = None,
        where: Callable[[Tensor, HookContext], Any] | None = None,
        ordinary: float | None = None,
    ) -> None:
        given = dict(which=which, positions=positions, window=window, ids=ids, where=where, ordinary=ordinary)
        chosen = {name: value for name, value in given.items() if value is not None} or {"which": "all"}
        if len(chosen) > 1:
            raise ValueError(
                f"Tokens takes one choice ({', '.join(_CHECKED)}), but got {' and '.join(chosen)}: "
                "combine two choices with & or |, as in Tokens('generated') & Tokens(ids={13})"
            )
        ((self.kind, value),) = chosen.items()
        self.value: Any = _CHECKED[self.kind](value)
        self._is_all = self.kind == "which" and self.value == "all"
        self._is_generated = self.kind == "which" and self.value == "generated"
        self._reads_values = self.kind in ("where", "ordinary") or self.value == "ordinary"

    @classmethod
    def of(cls, value: TokensLike, argument: str = "tokens") -> Tokens:
        """Return ``value`` itself, or the `Tokens` that a string names.

        Args:
            value: a choice, or its name.
            argument: the name of the argument that ``value`` was passed as, for the error.

        Raises:
            TypeError, ValueError: it is neither.
        """
        if isinstance(value, Tokens):
            return value
        if isinstance(value, str):
            return cls(one_of(argument, value, _NAMES))
        raise TypeError(f"{argument}={shown(value)} must be a name such as 'generated', or Tokens(...)")

    def mask(self, x: Tensor, ctx: HookContext, editing: bool = False) -> Tensor | None:
        """Return the chosen positions of an activation.

        Args:
            x: the activation, ``(B, T, D)`` if it is a sequence.
            ctx: the hook's context.
            editing: whether the positions will be edited rather than read.

        Returns:
            ``(B, T)`` bool; ``None`` when every element of ``x`` is chosen.

        Raises:
            TokensUnknown: not all of ``x`` was asked for, and ``x`` is not a sequence of tokens or the positions
                cannot be found.
        """
        facts = ctx.facts
        if facts.lost:
            raise TokensUnknown(
                f"gradient checkpointing runs {ctx.layer!r} again, and it is not known which earlier pass that "
                "repeats, and so which tokens were edited. Run backward after fewer passes, hook a layer outside the "
                "checkpointed ones, or train without checkpointing."
            )
        if self._is_all:
            return real_tokens(x, ctx)
        if editing and self._is_generated and are_generated(x, ctx):
            return None
        kept = None if self._reads_values or ctx.axes is not Axes.USUAL else facts.derived
        key = (self, editing, x.shape, x.get_device())
        if kept is not None and key in kept:
            mask: Tensor = kept[key]
            return mask
        mask = self._chosen(x, ctx, editing)
        if kept is not None:
            kept[key] = mask
        return mask

    def _chosen(self, x: Tensor, ctx: HookContext, editing: bool, whole: Tensor | None = None) -> Tensor:
        place = place_of_tokens(x, ctx.facts, ctx.axes) if x.dim() > 3 else None
        if place is not None:
            return of_all_streams(self._chosen(one_stream(x, place), ctx, editing, x), x, place)
        axes = ctx.axes.of(x)
        if x.dim() != 3 or axes is not Axes.USUAL:
            given = "has" if axes is Axes.USUAL else f"gives {axes.value}, with"
            raise TokensUnknown(
                f"tokens={self._text} needs an activation (batch, tokens, features), and {ctx.layer!r} {given} "
                f"shape {tuple(x.shape)}: use tokens='all', or choose another layer"
            )
        real = real_tokens(x, ctx, must_fit=True)
        try:
            return self._choose(_Choice(_span(x, real, ctx.facts), editing, x if whole is None else whole, ctx))
        except TokensUnknown as error:
            raise TokensUnknown(f"{ctx.layer!r}: {error}") from None

    def why_not_traced(self) -> str | None:
        """Return why the positions are not known inside a graph of ``torch.compile``; ``None`` if they are."""
        if self.kind == "where":
            return f"tokens={self._text} calls a function"
        ends = self.value if self.kind in ("positions", "window") else ()
        if (self.kind == "which" and self.value not in ("all", "ordinary")) or any(
            end is not None and end < 0 for end in ends
        ):
            return f"tokens={self._text} depend on where the prompt ends, which a graph does not know"
        return None

    def _choose(self, asked: _Choice) -> Tensor:
        """Return which real tokens are chosen, ``(B, T)`` bool."""
        return asked.span.real & _CHOOSE[self.kind](self.value, asked)

    @property
    def _text(self) -> str:
        return repr(self.value) if self.kind == "which" else repr(self)

    def __and__(self, other: Tokens) -> Tokens:
        return AllOf(self, _choice(self, "&", other))

    def __or__(self, other: Tokens) -> Tokens:
        return AnyOf(self, _choice(self, "|", other))

    def __invert__(self) -> Tokens:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("choices of tokens join with & | ~: `and`, `or` and `not` would silently drop one of them")

    def __repr__(self) -> str:
        return f"Tokens({self.value!r})" if self.kind == "which" else f"Tokens({self.kind}={self.value!r})"


TokensLike: TypeAlias = Tokens | TokensName
"""A choice of positions, or its name."""


class _Joined(Tokens):
    """Choices that are joined. Nothing here calls itself, so they may be joined as often as you like."""

    value: Any

    def _join(self, choices: tuple[Tokens, ...]) -> None:
        self._choices = choices
        self._is_all = self._is_generated = False
        self._reads_values = any(choice._reads_values for choice in choices)

    def why_not_traced(self) -> str | None:
        reasons: list[str] = []

        def note(choice: Tokens, parts: list[None]) -> None:
            reason = None if parts else choice.why_not_traced()
            reasons.extend([] if reason is None else [reason])

        whole: Tokens = self
        folded(whole, _parts_of, note)
        return reasons[0] if reasons else None

    def _choose(self, asked: _Choice) -> Tensor:
        def chosen(choice: Tokens, parts: list[Tensor]) -> Tensor:
            return choice._joined(parts, asked) if isinstance(choice, _Joined) else choice._choose(asked)

        whole: Tokens = self
        return folded(whole, _parts_of, chosen)

    def _joined(self, parts: list[Tensor], asked: _Choice) -> Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        whole: Tokens = self
        return written(whole, _pieces_of)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to make a copy: a list of the parts, so that a copy or pickle of a deep one is not deep."""
        if type(self) not in (AllOf, AnyOf, Not):
            return super().__reduce_ex__(protocol)
        whole: Tokens = self
        return rejoined, (steps_of(whole, _parts_of),)


def _parts_of(choice: Tokens) -> tuple[Tokens, ...]:
    return choice._choices if isinstance(choice, _Joined) else ()


def _pieces_of(choice: Tokens) -> list[Tokens | str]:
    if not isinstance(choice, _Joined):
        return [repr(choice)]
    pieces: list[Tokens | str] = []
    for part in choice._choices:
        around = isinstance(part, (AllOf, AnyOf)) and part.kind != choice.kind
        pieces += [f" {choice.kind} "] if pieces else []
        pieces += ["(", part, ")"] if around else [part]
    return ["~", *pieces] if choice.kind == "~" else pieces


class _Several(_Joined):
    value: tuple[Tokens, ...]

    def __init__(self, *parts: TokensLike, choices: Sequence[TokensLike] = ()) -> None:
        if isinstance(choices, (str, Tokens)):
            raise TypeError(f"choices={shown(choices)} is one choice: give a list, choices=['generated', ...]")
        given = (*parts, *listed("choices", choices, "choices of tokens", "['generated', Tokens(ids={2})]"))
        if not given:
            raise ValueError(
                f"{type(self).__name__}() needs at least one choice of tokens, as choices=['generated', ...]"
            )
        self.value = tuple(Tokens.of(choice, "choices") for choice in given)
        self._join(self.value)


class AllOf(_Several):
    """The positions that are in every one of some choices: ``one & other``.

    Args:
        *parts: the choices, `Tokens` or names.
        choices: more choices; for configuration files, which can only pass arguments by name.

    Raises:
        TypeError, ValueError: no choice was given, or an argument is not a choice.

    Examples:
        >>> AllOf(choices=["generated", Tokens(ids={2})])
        Tokens('generated') & Tokens(ids=[2])
    """

    kind = "&"

    def _joined(self, parts: list[Tensor], asked: _Choice) -> Tensor:
        return torch.stack(parts).all(0)


class AnyOf(_Several):
    """The positions that are in at least one of some choices: ``one | other``. The arguments are those of `AllOf`."""

    kind = "|"

    def _joined(self, parts: list[Tensor], asked: _Choice) -> Tensor:
        return torch.stack(parts).any(0)


class Not(_Joined):
    """The real tokens that a choice (`Tokens` or a name) leaves out: ``~choice``."""

    kind = "~"
    value: Tokens

    def __init__(self, choice: TokensLike) -> None:
        self.value = Tokens.of(choice, "choice")
        self._join((self.value,))

    def _joined(self, parts: list[Tensor], asked: _Choice) -> Tensor:
        return asked.span.real & ~parts[0]


def _choice(one: Tokens, mark: str, other: object) -> Tokens:
    if not isinstance(other, Tokens):
        raise TypeError(f"{one!r} {mark} {other!r}: both sides must be Tokens(...)")
    return other


def put_where(mask: Tensor | None, edited: Tensor, x: Tensor) -> Tensor:
    """Return ``edited`` at the chosen positions, and ``x`` elsewhere, bit-equal: for a controller that you write.

    Args:
        mask: ``(B, T)`` bool, or ``None`` for every position.
        edited: of the shape of ``x``.
        x: ``(B, T, ...)``.
    """
    if mask is None or edited.shape != x.shape or edited.dtype != x.dtype:
        return edited  # a wrong shape or dtype is the controller's to refuse, with its own message
    # Not x + mask * delta: that turns -0.0 into 0.0 where the mask is off.
    return torch.where(mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), edited, x)


class _Choice(NamedTuple):
    """The question put to a choice: which tokens of a pass to read or edit. A function also gets the activation."""

    span: Span
    editing: bool
    x: Tensor
    ctx: HookContext


def _span(x: Tensor, real: Tensor | None, facts: PassFacts) -> Span:
    """Return the span of an activation, shared by all choices and layers of the pass with the same tokens."""
    if facts.derived is None:
        return Span(x, real, facts)
    key = ("span", x.shape[:2], x.get_device(), None if real is None else id(real))
    if key not in facts.derived:
        facts.derived[key] = Span(x, real, facts)  # it keeps `real` alive, so its id stays unique
    span: Span = facts.derived[key]
    return span


# The chosen tokens, by kind.


def _named(which: str, asked: _Choice) -> Tensor:
    if which == "ordinary":
        return _ordinary(_MASSIVE, asked)
    span, editing = asked.span, asked.editing
    if which == "generated" or (which == "last" and editing and span.facts.side != "encoder"):
        generated = _generated(span)
        # Each generated token was once the last one, and a pass without a cache shows all of them again.
        return generated | span.last_of_prompt if editing and not span.is_after_prompt else generated
    return {"all": span.real, "prompt": span.in_prompt, "last": span.last}[which]


def _generated(span: Span) -> Tensor:
    if span.facts.side == "encoder":
        raise TokensUnknown(
            "the layer sees the tokens of an encoder, which are never generated: choose a layer of the decoder, or use "
            "tokens='all', positions=... or ids=..."
        )
    return span.generated


def _at_positions(positions: Sequence[int], asked: _Choice) -> Tensor:
    span = asked.span
    chosen = torch.zeros_like(span.real)
    for position in positions:
        chosen = chosen | (span.positions == _from_start(position, span))
    return chosen


def _in_window(window: tuple[int | None, int | None], asked: _Choice) -> Tensor:
    span, (start, stop) = asked.span, window
    chosen = span.real
    if start is not None:
        chosen = chosen & (span.positions >= _from_start(start, span))
    if stop is not None:
        chosen = chosen & (span.positions < _from_start(stop, span))
    return chosen


def _from_start(position: int, span: Span) -> int | Tensor:
    return position if position >= 0 else span.prompt_lengths + position


def _with_ids(ids: Sequence[int], asked: _Choice) -> Tensor:
    span = asked.span
    chosen = torch.zeros_like(span.real)
    for token_id in ids:  # compared with one number at a time, so nothing is copied to the device
        chosen = chosen | (span.ids == token_id)
    return chosen


def _where(function: Callable[[Tensor, HookContext], Tensor], asked: _Choice) -> Tensor:
    span, mask = asked.span, function(asked.x, asked.ctx)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != span.real.shape:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TokensUnknown(
            f"where= must return a torch.bool mask (batch, tokens) = {tuple(span.real.shape)}, not {given}"
        )
    return mask.to(asked.x.device)


def _ordinary(times: float, asked: _Choice) -> Tensor:
    """Return where the norm is below ``times`` its median; where it is not finite, it is not."""
    norms = _norms(asked.x, asked.span.facts, asked.ctx.axes)
    median = norms.masked_fill(~asked.span.real, float("nan")).nanmedian()
    return norms < times * median


def _norms(x: Tensor, facts: PassFacts, axes: Axes) -> Tensor:
    """Return the norm of each token, ``(B, T)``, of all of its streams together."""
    if x.dim() > 3 and place_of_tokens(x, facts, axes) == 1:
        x = x.movedim(0, 2)  # (S, B, T, D) -> (B, T, S, D)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32  # 16 bits would overflow
    norms: Tensor = torch.linalg.vector_norm(x.flatten(2), dim=2, dtype=wide)
    return norms


_CHOOSE: dict[str, Callable[[Any, _Choice], Tensor]] = {
    "which": _named,
    "positions": _at_positions,
    "window": _in_window,
    "ids": _with_ids,
    "where": _where,
    "ordinary": _ordinary,
}


# The checks of the given values, by kind.


def _known_name(which: Any) -> str:
    return one_of("which", which, _NAMES)


def _integers(name: str) -> Callable[[Any], list[int]]:
    def checked(values: Any) -> list[int]:
        given = plain(values)
        several = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
        numbers = {whole(number) for number in listed(name, given, "integers", "[0, 3]")} if several else set()
        known = {number for number in numbers if number is not None and _fits(number)}
        if not known or known != numbers:
            raise ValueError(f"{name}={shown(values)} must be integers, at least one, such as {name}=[0, 3]")
        return sorted(known)

    return checked


def _fits(number: int | None) -> bool:
    """Return whether a whole number fits the 64 bits of the tensors that it is compared with."""
    return number is not None and -_LARGEST <= number <= _LARGEST


def _ends(window: Any) -> tuple[int | None, int | None]:
    given = plain(window)
    ends = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(ends) != 2 or not all(end is None or _fits(whole(end)) for end in ends):
        raise ValueError(f"window={shown(window)} must be (start, stop), integers or None, such as window=(-8, None)")
    start, stop = (None if end is None else whole(end) for end in ends)
    if start is not None and stop is not None and (start < 0) == (stop < 0) and start >= stop:
        raise ValueError(f"window={shown(window)} is empty: start must be before stop")
    return start, stop


def _function(where: Any) -> Any:
    if not callable(where):
        raise TypeError(f"where={shown(where)} must be a function (x, ctx) -> mask (B, T)")
    return where


def _above_one(ordinary: Any) -> float:
    times = plain(ordinary)
    if not is_finite(times) or times <= 1:
        raise ValueError(f"ordinary={shown(ordinary)} must be a number above 1, a multiple of the median norm")
    return float(times)


_CHECKED: dict[str, Callable[[Any], Any]] = {
    "which": _known_name,
    "positions": _integers("positions"),
    "window": _ends,
    "ids": _integers("ids"),
    "where": _function,
    "ordinary": _above_one,
}
