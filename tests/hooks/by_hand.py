"""Choices of tokens counted by hand: one row and one column at a time, from the definition of each.

And what compares them with those of `Tokens` in every pass of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import Detector, Layers, Tokens
from mi_crow_lightning.hooks.tokens import AllOf, AnyOf, Not
from tests.models import VOCABULARY


class Place(NamedTuple):
    """One real token of one row."""

    position: int  # real tokens before it
    prompt: int  # real tokens of the row's prompt
    newest: bool  # whether it is the row's last one so far
    token_id: int


def first_edit(at: Place) -> bool:
    """From the last token of the prompt on."""
    return at.position >= at.prompt - 1


CHOICES: dict[str, tuple[Tokens, Callable[[Place], bool], Callable[[Place], bool]]] = {
    # name: the choice, what it reads, what it edits
    "all": (Tokens("all"), lambda at: True, lambda at: True),
    "prompt": (Tokens("prompt"), lambda at: at.position < at.prompt, lambda at: at.position < at.prompt),
    "generated": (Tokens("generated"), lambda at: at.position >= at.prompt, first_edit),
    "last": (Tokens("last"), lambda at: at.newest and first_edit(at), first_edit),
}


def _same(name: str, tokens: Tokens, chosen: Callable[[Place], bool]) -> None:
    CHOICES[name] = (tokens, chosen, chosen)


_same("positions", Tokens(positions=[0, 3, 7]), lambda at: at.position in (0, 3, 7))
_same("from the end", Tokens(positions=[-1, -2, 1]), lambda at: at.position in (at.prompt - 1, at.prompt - 2, 1))
_same("window", Tokens(window=(1, 4)), lambda at: 1 <= at.position < 4)
_same("open window", Tokens(window=(-2, None)), lambda at: at.position >= at.prompt - 2)
_same("inner window", Tokens(window=(None, -1)), lambda at: at.position < at.prompt - 1)
_same("mixed window", Tokens(window=(1, -1)), lambda at: 1 <= at.position < at.prompt - 1)
_same("ids", Tokens(ids={5, 9, 20, 33, 47}), lambda at: at.token_id in (5, 9, 20, 33, 47))
_same("where", Tokens(where=lambda x, ctx: ctx.facts.input_ids[:, -x.shape[1] :] > 30), lambda at: at.token_id > 30)
_same("both", Tokens("prompt") & Tokens(window=(2, None)), lambda at: 2 <= at.position < at.prompt)
_same(
    "all of three",
    AllOf("prompt", choices=[Tokens(window=(1, None)), Tokens(window=(None, 4))]),
    lambda at: 1 <= at.position < min(4, at.prompt),
)
_same(
    "any of three",
    AnyOf(Tokens(positions=[0]), Tokens(positions=[3]), choices=[Not("prompt")]),
    lambda at: at.position in (0, 3) or at.position >= at.prompt,
)
_same("neither", ~(Tokens("prompt") | Tokens(positions=[6])), lambda at: at.position >= at.prompt and at.position != 6)


def chosen(name: str, prompt: Tensor, ids: Tensor, start: int, editing: bool) -> Tensor:
    """The choice in a pass over the columns from ``start`` on.

    Args:
        name: of ``CHOICES``.
        prompt: the prompt's attention mask ``(B, P)``; all that follows is real.
        ids: the pass's token IDs ``(B, T)``.
        start: the column of the first of them.
        editing: whether it is for an edit.
    """
    holds = CHOICES[name][2 if editing else 1]
    result = torch.zeros(ids.shape, dtype=torch.bool)
    end = start + ids.shape[1]
    for row, mask in enumerate(prompt.tolist()):
        real = [*mask, *[1] * max(0, end - len(mask))]
        newest = max(column for column in range(max(end, len(mask))) if real[column])
        for column in range(start, end):
            place = Place(sum(real[:column]), sum(mask), column == newest, int(ids[row, column - start]))
            result[row, column - start] = bool(real[column]) and holds(place)
    return result


def endless(model: Any) -> Any:
    """So that every row goes on to the end."""
    model.generation_config.eos_token_id = 10**6  # no token; None would not do with prompt lookup
    return model.eval()


def prompts(side: str = "left", lengths: tuple[int, ...] = (6, 3, 5)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


class Passes:
    """A hook of the test's own: token IDs and cache length of each pass of a stack of blocks."""

    def __init__(self, stack: nn.Module) -> None:
        self.seen: list[tuple[Tensor, int]] = []
        stack.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        self.seen.append((kwargs["input_ids"].clone(), past))


class Read(Detector):
    """What a choice reads in each pass; or with ``editing`` what it would edit."""

    def __init__(self, tokens: Tokens, layer: str = "block:2", editing: bool = False) -> None:
        super().__init__(layer)
        self.tokens, self.editing = tokens, editing
        self.seen: list[Tensor] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        mask = self.tokens.mask(x, ctx, self.editing)
        self.seen.append(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)


Choices = dict[tuple[str, bool], Read]


def every_choice(model: nn.Module, layer: str = "block:2") -> Choices:
    """Each choice on the model, for reading and for editing."""
    layers = Layers(model, allow_stacking=True)
    reads = {(name, edit): Read(CHOICES[name][0], layer, edit) for name in CHOICES for edit in (False, True)}
    for read in reads.values():
        layers.register_hook(None, read)
    return reads


def assert_counted_by_hand(reads: Choices, passes: Passes, prompt: Tensor) -> None:
    for (name, editing), read in reads.items():
        expected = [chosen(name, prompt, ids, past, editing).tolist() for ids, past in passes.seen]
        assert [mask.tolist() for mask in read.seen] == expected, (name, editing)
        read.seen.clear()
    passes.seen.clear()
