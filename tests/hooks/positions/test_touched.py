"""The tokens that an edit changed, by how a layer arranges them, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.context import HookContext, Place, Unregistered
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.touched import Touched, TouchedTokens

B, T, D = 3, 4, 5
IDS = torch.arange(B * T).view(B, T)
FACTS = PassFacts(input_ids=IDS, prompt_width=T, generating=True)
SEQUENCES = torch.cat([IDS, torch.full((B, 2), 99)], 1)
WANTED = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()


def call(touched: TouchedTokens, before: Tensor, after: Tensor | None, channels: int = -1, **changes: Any) -> None:
    axes = changes.pop("axes", Axes.USUAL)
    facts = replace(FACTS, **changes)
    layer = nn.Identity()
    ctx = HookContext(Place(Unregistered(layer, None), layer="h.0"), facts=facts, axes=axes)
    touched("1", ctx, None if after is None else (before, after), channels)


def of_call(before: Tensor, after: Tensor | None, drafts: bool = False, **options: Any) -> Touched:
    touched = TouchedTokens({"1": "steer"})
    call(touched, before, after, **options)
    return touched.of(SEQUENCES, T, drafts)


def edited(*layout: int, by_token: Tensor = WANTED) -> tuple[Tensor, Tensor]:
    """An activation and its edit: ``by_token`` (B, T), laid out with a stream dimension and turned."""
    x = torch.randn(B, T, 2, D, generator=torch.Generator().manual_seed(0))
    y = x + torch.where(by_token, 1.0, 0.0)[:, :, None, None] * torch.tensor([0.0, 1.0])[:, None]  # one of two streams
    return x.permute(layout), y.permute(layout)


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        (tuple(x[..., 1, :] for x in edited(0, 1, 2, 3)), {}),
        (tuple(x[..., 1, :].reshape(B * T, D) for x in edited(0, 1, 2, 3)), {}),
        (tuple(x[..., 1, :].transpose(0, 1) for x in edited(0, 1, 2, 3)), {"axes": Axes.TOKENS_FIRST}),
        (edited(0, 1, 2, 3), {"axes": Axes.STREAMS_LATER}),
        (edited(2, 0, 1, 3), {"axes": Axes.STREAMS_FIRST}),
        (edited(0, 1, 2, 3), {}),
    ],
)
def test_marks_by_token_whatever_the_layer_arranges(pair: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
    marks, unknown = of_call(*pair, **options)
    assert unknown == {} and torch.equal(marks["steer"], torch.cat([WANTED, torch.zeros(B, 2).bool()], 1))


def test_a_head_for_the_last_token_alone_and_passes_after_the_prompt() -> None:
    touched, one = TouchedTokens({"1": "steer"}), torch.ones(B, 1, D)
    call(touched, one, one * torch.tensor([1.0, 2.0, 1.0])[:, None, None])  # of the prompt's last column
    call(touched, one, 2 * one, input_ids=torch.full((B, 1), 99), past=T)
    assert touched.of(SEQUENCES, T).marks["steer"].int().tolist() == [
        [0] * 4 + [1, 0],
        [0] * 3 + [1, 1, 0],
        [0] * 4 + [1, 0],
    ]


def test_layers_of_a_pass_and_passes_of_a_token_add_up() -> None:
    touched, x = TouchedTokens({"1": "steer", "2": "idle"}), torch.ones(B, T, D)
    for column in (0, 2, 2):
        y = x.clone()
        y[1, column] = 0
        call(touched, x, y)
    marks, _ = touched.of(SEQUENCES, T)
    assert marks["steer"].nonzero().tolist() == [[1, 0], [1, 2]]
    assert not marks["idle"].any() and marks["idle"].shape == SEQUENCES.shape


def test_tokens_that_the_text_does_not_have_are_left_out() -> None:
    """Those that PEFT learns for a prompt come before it, without an ID."""
    x = torch.ones(B, T + 2, D)
    y = x.clone()
    y[0, 1], y[1, 2], y[2, 5] = 0, 0, 0
    marks, unknown = of_call(x, y, input_ids=None, embedded=T + 2, embedded_rows=B, prompt_width=T + 2)
    assert unknown == {} and marks["steer"].nonzero().tolist() == [[1, 0], [2, 3]]


def test_a_token_that_turned_into_nan_was_changed() -> None:
    x = torch.ones(B, T, D)
    y = x.clone()
    y[1, 2, 0] = torch.nan
    assert of_call(x, y).marks["steer"].nonzero().tolist() == [[1, 2]]


X = torch.ones(B, T, D)


@pytest.mark.parametrize(
    ("before", "after", "options", "why"),
    [
        (X, None, {}, "cannot be compared"),
        (X, 2 * X, {"generating": False}, "other tokens than those of the text"),
        (X, 2 * X, {"side": "encoder"}, "other tokens than those of the text"),
        (X, 2 * X, {"guided": True}, "guidance"),
        (X, 2 * X, {"past_unknown": True}, "how many tokens came before"),
        (X[:, 0], 2 * X[:, 0], {}, "(3, 5) of 'h.0' does not show which tokens"),
        (X, 2 * X, {"channels": 1}, "(3, 4, 5) of 'h.0' does not show which tokens"),
        (X[:, :3], 2 * X[:, :3], {}, "(3, 3, 5) of 'h.0' does not show which tokens"),
        (X, 2 * X, {"axes": Axes.CHANNELS_FIRST}, "(batch, channels, positions)"),
        (torch.cat([X, X]), torch.cat([X, 0 * X]), {"input_ids": torch.cat([IDS, IDS])}, "ran 6 rows for the 3 texts"),
        (X, 2 * X, {"input_ids": IDS + 1}, "other tokens ran"),
        (X, 2 * X, {"input_ids": None, "embedded": T, "embedded_rows": B, "drafts": True}, "drafts of tokens"),
    ],
)
def test_what_is_not_known_has_a_reason(before: Tensor, after: Any, options: dict[str, Any], why: str) -> None:
    marks, unknown = of_call(before, after, **options)
    assert marks == {} and why in unknown["steer"]


def test_of_drafts_only_those_count_that_became_text() -> None:
    ids = IDS.clone()
    ids[0, 1] = 77  # was rejected
    marks, unknown = of_call(X, 2 * X, input_ids=ids, drafts=True)
    assert unknown == {} and (~marks["steer"][:, :T]).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize(("elsewhere", "known"), [(0, True), (2, False)])
def test_changes_that_nobody_noted_are_noticed(elsewhere: int, known: bool) -> None:
    """Those are the counts of `Effects`, which a compiled graph adds to as well."""
    counted = {"1": 100, "2": 7}
    touched = TouchedTokens(
        {"1": "steer", "2": "idle"}, None, lambda: {hook: torch.tensor(float(n)) for hook, n in counted.items()}
    )
    call(touched, *(x[..., 1, :] for x in edited(0, 1, 2, 3)))
    call(touched, X, 2 * X)
    counted["1"] += int(WANTED.sum()) + B * T + elsewhere
    marks, unknown = touched.of(SEQUENCES, T)
    assert set(marks) == ({"steer", "idle"} if known else {"idle"})
    assert known or "cannot be followed" in unknown["steer"]


def test_what_is_not_known_of_one_pass_is_not_known_at_all() -> None:
    touched = TouchedTokens({"1": "steer", "2": "graph"}, {"2": "it runs inside a compiled graph"})
    call(touched, X, 2 * X)
    call(touched, X, None)
    call(touched, X, 2 * X)
    assert touched.of(SEQUENCES, T).marks == {}
    assert set(touched.of(SEQUENCES, T).unknown) == {"steer", "graph"}
