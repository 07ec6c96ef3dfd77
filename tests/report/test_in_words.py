"""Schedules and tokens in words: every field, every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mi_crow_lightning import (
    ActivationStatistics,
    AllOf,
    AnyOf,
    FunctionController,
    LayerActivationDetector,
    LoggedSteps,
    Not,
    Schedule,
    SteeringController,
    Tokens,
)
from mi_crow_lightning.hooks.schedules import Moment, When
from mi_crow_lightning.hooks.tokens import _CHOOSE
from mi_crow_lightning.report.in_words import schedule_in_words, tokens_in_words

SCHEDULES: list[tuple[When, str]] = [
    (Schedule(), "always"),
    (Schedule(stages="predict"), "predict"),
    (Schedule(stages=["train", "validate"]), "train and validate"),
    (Schedule(epochs=3), "epoch 3"),
    (Schedule(epochs=[4, 0]), "epochs 0, 4"),
    (Schedule(epochs=range(10, 20)), "epochs 10 to 19"),
    (Schedule(epochs=range(0, 100, 25)), "epochs 0 to 75 in steps of 25"),
    (Schedule(batches=range(2)), "batches 0, 1"),
    (Schedule(batches=range(9)), "batches 0 to 8"),
    (Schedule(batches=list(range(1, 20, 2))), "batches 1, 3, 5, 7, 9, 11, 13, 15, ..."),
    (Schedule(every_n_epochs=1), "each epoch"),
    (Schedule(every_n_epochs=2), "every 2 epochs"),
    (Schedule(every_n_batches=3), "every 3 batches"),
    (Schedule(every_n_steps=50), "every 50 steps"),
    (Schedule(start_step=10), "from step 10"),
    (Schedule(stop_step=20), "before step 20"),
    (Schedule(stages="train", every_n_steps=5, start_step=1), "train, every 5 steps, from step 1"),
    (LoggedSteps(), "logged steps of train (every 50), validate and test"),
    (Not(Schedule(batches=0)), "not (batch 0)"),
    (AllOf(Schedule(epochs=0), Schedule(batches=1)), "epoch 0, and batch 1"),
    (AnyOf(Schedule(epochs=0), Schedule(batches=1)), "epoch 0, or batch 1"),
    (Schedule(epochs=0) & (Schedule(batches=1) | Schedule(batches=2)), "epoch 0, and (batch 1, or batch 2)"),
    ((Schedule(epochs=0) & Schedule(batches=1)) | Schedule(batches=2), "(epoch 0, and batch 1), or batch 2"),
    (Schedule(epochs=0) | Schedule(epochs=1) | Schedule(epochs=2), "epoch 0, or epoch 1, or epoch 2"),
]


@pytest.mark.parametrize(("schedule", "words"), SCHEDULES)
def test_a_schedule_in_words(schedule: When, words: str) -> None:
    assert schedule_in_words(schedule, every=50) == words


def test_every_field_of_a_schedule_is_above() -> None:
    plain = [vars(schedule) for schedule, _ in SCHEDULES if type(schedule) is Schedule]
    assert {name for fields in plain for name, value in fields.items() if value is not None} == vars(Schedule()).keys()


@pytest.mark.parametrize(("every", "words"), [(1, "logged steps of train (each), "), (0, "")])
def test_the_logging_interval_is_told(every: int, words: str) -> None:
    assert schedule_in_words(LoggedSteps(), every) == f"{words}validate and test"


class Sometimes(Schedule):
    def due(self, moment: Moment) -> bool:
        return moment.batch_idx == 7

    def __repr__(self) -> str:
        return "Sometimes()"


def test_a_schedule_of_a_users_own_is_told_by_its_repr() -> None:
    assert schedule_in_words(Sometimes(stages="train") & Schedule(epochs=0), every=1) == "Sometimes(), and epoch 0"


def nouns(x: Any, ctx: Any) -> Any:
    return None


TOKENS: list[tuple[Tokens, str]] = [
    (Tokens("all"), "all but padding"),
    (Tokens("prompt"), "the prompt"),
    (Tokens("generated"), "what is generated"),
    (Tokens("last"), "the last token of each row"),
    (Tokens(positions=[0]), "position 0"),
    (Tokens(positions=[3, -1]), "positions -1, 3"),
    (Tokens(window=(-8, None)), "positions from -8 on"),
    (Tokens(window=(None, 4)), "positions before 4"),
    (Tokens(window=(2, 4)), "positions from 2 on, before 4"),
    (Tokens(window=(None, None)), "all but padding"),
    (Tokens(ids=[13]), "token ID 13"),
    (Tokens(ids={13, 2}), "token IDs 2, 13"),
    (Tokens("ordinary"), "all but padding and massive tokens"),
    (Tokens(ordinary=6.5), "all but padding and tokens from 6.5 x the median norm on"),
    (Tokens(where=nouns), "where nouns says"),
    (~Tokens("prompt"), "not (the prompt)"),
    (Tokens("prompt") & ~Tokens(ids=[2]), "the prompt, and not (token ID 2)"),
    (
        Tokens("prompt") | (Tokens("last") & Tokens(ids=[2])),
        "the prompt, or (the last token of each row, and token ID 2)",
    ),
]


@pytest.mark.parametrize(("tokens", "words"), TOKENS, ids=[words for _, words in TOKENS])
def test_what_a_detector_reads_in_words(tokens: Tokens, words: str) -> None:
    assert tokens_in_words(ActivationStatistics(0, tokens=tokens)) == words


def test_every_kind_of_tokens_is_above() -> None:
    assert {tokens.kind for tokens, _ in TOKENS} == {*_CHOOSE, "&", "|", "~"}


@pytest.mark.parametrize("which", ["generated", "last"])
def test_an_edit_of_what_is_generated_begins_at_the_prompts_last_token(which: str) -> None:
    assert tokens_in_words(FunctionController(0, abs, tokens=which)) == (
        "what is generated, from the prompt's last token on"
    )


def test_a_condition_is_told() -> None:
    steer = SteeringController(0, vector=torch.ones(4), tokens="prompt", when=nouns)
    assert tokens_in_words(steer) == "the prompt, where nouns says"


def test_a_hook_without_tokens_is_given_every_position() -> None:
    assert tokens_in_words(LayerActivationDetector(0)) == "every position"
