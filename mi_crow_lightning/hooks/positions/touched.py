"""The tokens whose activations hooks changed while a model generated, noted for as long as somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.streams import place_of_tokens
from mi_crow_lightning.metrics.changes import changed_tokens

__all__ = ["Touched", "TouchedTokens"]


class Touched(NamedTuple):
    """The tokens that hooks changed.

    Attributes:
        marks: ``(R, W)`` bool on the CPU for each hook, by its name: the tokens of the sequences that it changed at any
            of its layers, in any pass.
        unknown: why the tokens of a hook are not known, by its name. Such a hook has no marks.
    """

    marks: dict[str, Tensor]
    unknown: dict[str, str]


class _Part(NamedTuple):
    """The changes of one hook in one pass."""

    facts: PassFacts
    first: int  # the column of the first token, the prompt's padding included
    ids: Tensor | None  # (R, T)
    marks: Tensor  # (R, T) bool


class TouchedTokens:
    """A listener of `Effects` that notes which tokens each hook changed in the passes of one call of ``generate``.

    It notes on the device, and waits for it when `of` is called.

    Args:
        names: the names of the hooks, by ID.
        unknown: why the tokens of a hook cannot be known, by its ID.
        counted: returns how many tokens each hook has changed so far, by its ID, see `Effects.changed`. A hook that
            changed others than those that were noted, such as in a compiled graph, is not known.

    Attributes:
        names: as given.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        unknown: Mapping[str, str] | None = None,
        counted: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.names = dict(names)
        self._unknown = dict(unknown or {})
        self._parts: dict[str, list[_Part]] = {hook_id: [] for hook_id in names}
        self._counted = counted
        self._before = counted() if counted is not None else {}
        self._noted: dict[str, Tensor] = {}

    def __call__(
        self, hook_id: str, ctx: HookContext, pair: tuple[Tensor, Tensor] | None, channels: int | None
    ) -> None:
        """Note a change: see `Effects`."""
        if hook_id not in self._unknown:
            try:
                self._note(hook_id, ctx, pair, channels)
            except _Unknown as unknown:
                self._unknown[hook_id] = str(unknown)
                self._parts[hook_id].clear()

    def _note(self, hook_id: str, ctx: HookContext, pair: tuple[Tensor, Tensor] | None, channels: int | None) -> None:
        facts, parts = ctx.facts, self._parts[hook_id]
        if pair is None:
            raise _Unknown(f"the activations of {ctx.layer!r} before and after it cannot be compared")
        _check_pass(ctx)
        changed = changed_tokens(*pair, channels)
        count = changed.sum()
        self._noted[hook_id] = (
            self._noted[hook_id] + count.to(self._noted[hook_id]) if hook_id in self._noted else count
        )
        marks = _by_token(changed, pair[0], channels, ctx)  # (R, T)
        if parts and parts[-1].facts is facts and parts[-1].marks.shape == marks.shape:
            parts[-1].marks.logical_or_(marks.to(parts[-1].marks.device))  # another layer in the same pass
            return
        seen, last = marks.shape[1], facts.tokens or marks.shape[1]
        ids = facts.input_ids if facts.input_ids is not None and facts.input_ids.shape == (len(marks), last) else None
        first = (facts.past or 0) + last - seen  # a head may see the last token of the pass alone
        parts.append(_Part(facts, first, None if ids is None else ids[:, last - seen :], marks))

    def of(self, sequences: Tensor, width: int, drafts: bool = False) -> Touched:
        """Return the tokens that the hooks changed, as far as they are known.

        Args:
            sequences: ``(R, W)``, the tokens of prompts and continuations, as ``generate`` returned them.
            width: columns of the prompts.
            drafts: whether tokens may have run that were then rejected, as in assisted generation.
        """
        self._compare_counts()
        found = Touched({}, {self.names[hook_id]: why for hook_id, why in self._unknown.items()})
        for hook_id, parts in self._parts.items():
            if hook_id in self._unknown:
                continue
            try:
                found.marks[self.names[hook_id]] = _joined(parts, sequences, width, drafts)
            except _Unknown as unknown:
                found.unknown[self.names[hook_id]] = str(unknown)
        return found

    def _compare_counts(self) -> None:
        after = self._counted() if self._counted is not None else {}
        for hook_id, count in after.items():
            noted = float(self._noted[hook_id]) if hook_id in self._noted else 0.0
            if hook_id not in self._unknown and float(count - self._before[hook_id]) != noted:
                self._unknown[hook_id] = (
                    "it also changed tokens in passes that cannot be followed, as in a compiled graph"
                )


class _Unknown(Exception):
    """The reason why the tokens that a hook changed are not known."""


def _check_pass(ctx: HookContext) -> None:
    facts = ctx.facts
    if not facts.generating or facts.side == "encoder":
        raise _Unknown(f"{ctx.layer!r} ran in a pass that reads other tokens than those of the text")
    if facts.guided:
        raise _Unknown("guidance runs a second text beside each one")
    if facts.past_unknown:
        raise _Unknown("the model's state does not say how many tokens came before")


def _by_token(marks: Tensor, x: Tensor, channels: int | None, ctx: HookContext) -> Tensor:
    """Return marks, which have the shape of the activation without channels, as ``(R, T)``.

    Raises:
        _Unknown: the activation does not show its tokens.
    """
    facts, axes = ctx.facts, ctx.axes.of(x)
    last = channels is None or channels in (-1, x.dim() - 1)
    if last and ctx.place.queries is None and facts.rows is not None and facts.tokens is not None:
        if x.dim() == 2 and axes is Axes.USUAL and len(x) == facts.rows * facts.tokens:
            marks = marks.view(facts.rows, facts.tokens)
        elif x.dim() == 3 and axes.tokens_first:
            marks = marks.T
        elif x.dim() == 4 and (place := place_of_tokens(x, facts, ctx.axes)) is not None:
            marks = marks.any(0 if place else -1)
        elif axes is not Axes.USUAL:
            raise _Unknown(f"{ctx.layer!r} gives {axes.value}")
        if marks.dim() == 2 and len(marks) == facts.rows and marks.shape[1] in (1, facts.tokens):
            return marks
    raise _Unknown(f"the activation {tuple(x.shape)} of {ctx.layer!r} does not show which tokens it is of")


def _joined(parts: list[_Part], sequences: Tensor, width: int, drafts: bool) -> Tensor:
    """Return the marks of all passes, ``(R, W)`` on the CPU.

    Raises:
        _Unknown: other rows or tokens ran than those of the sequences.
    """
    if not parts:
        return sequences.new_zeros(sequences.shape, dtype=bool, device="cpu")  # type: ignore[call-overload,no-any-return]
    device = parts[0].marks.device
    sequences = sequences.to(device)
    joined, other = sequences != sequences, sequences.new_zeros((), dtype=bool)  # type: ignore[call-overload]
    for facts, first, ids, of_pass in parts:
        marks = of_pass.to(device)
        if len(marks) != len(sequences):
            raise _Unknown(f"the model ran {len(marks)} rows for the {len(sequences)} texts")
        if ids is None and drafts:
            raise _Unknown("drafts of tokens ran as well, and the model was not called with token IDs")
        learned = 0 if facts.prompt_width is None else facts.prompt_width - width  # tokens that the text does not have
        begin = max(first - learned, 0)
        marks = marks[:, begin - (first - learned) :]
        marks = marks[:, : max(sequences.shape[1] - begin, 0)]
        columns = slice(begin, begin + marks.shape[1])
        if ids is not None:
            ran = ids[:, begin - (first - learned) :][:, : marks.shape[1]].to(device) == sequences[:, columns]
            other = other | (marks & ~ran).any()
            marks = marks & ran
        joined[:, columns] |= marks
    if not drafts and bool(other):
        raise _Unknown("other tokens ran than those of the text")
    return joined.cpu()
