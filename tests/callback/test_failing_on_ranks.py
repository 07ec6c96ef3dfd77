"""A hook fails on one of two ranks outside of passes: no rank waits for it, and both say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callback.program_failing_on_ranks import STEPS

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", "-m", "tests.callback.program_failing_on_ranks", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def batches(found: dict[str, Any]) -> list[tuple[str, int, float]]:
    return [
        (stage, step, round(value, 5)) for stage, step, tag, value in found["rows"] if tag.startswith("mine_batches")
    ]


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
@pytest.mark.parametrize("kind", ["plain", "grows", "two rounds", "may follow"])
def test_healthy_shares_are_read_as_ever(ranks: list[Any], kind: str) -> None:
    for rank in ranks:
        expected = [("train", step, 2.0) for step in range(STEPS)] + [("validate", STEPS - 1, 4.0)]
        assert batches(rank[kind]) == expected
        assert rank[kind]["enabled"] and rank[kind]["said"] == []


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
@pytest.mark.parametrize(("kind", "failing", "read"), [("first", 1, 0), ("third", 1, 2), ("on rank 0", 0, 1)])
def test_a_share_that_fails_on_one_rank(ranks: list[Any], kind: str, failing: int, read: int) -> None:
    for number, rank in enumerate(ranks):
        found = rank[kind]
        assert batches(found) == [("train", step, 2.0) for step in range(read)]
        assert others(found) == others(rank["plain"]) and not found["enabled"]
        assert len(found["said"]) == 1
        assert ("ValueError: only here" if number == failing else "failed on another rank") in found["said"][0]


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
@pytest.mark.parametrize(("kind", "said"), [("on both", "only here"), ("merge", "only here")])
def test_a_share_that_fails_on_both_ranks(ranks: list[Any], kind: str, said: str) -> None:
    for rank in ranks:
        assert batches(rank[kind]) == [("train", 0, 2.0)]
        assert others(rank[kind]) == others(rank["plain"])
        assert len(rank[kind]["said"]) == 1 and said in rank[kind]["said"][0]


# Where a run's third reading fails: which ranks say why, and which that another one failed; and what both read before.
LATER_ROUNDS = {
    "second round": ("only here", [1]),
    "second round on rank 0": ("only here", [0]),
    "second round on both": ("only here", [0, 1]),
    "second round is missing": ("and another number on other ranks", [0, 1]),
    "first merge": ("only here", [1]),
    "announced on one": ("differ in more=", [0, 1]),
}


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
@pytest.mark.parametrize("kind", LATER_ROUNDS)
def test_a_share_that_fails_in_a_later_round(ranks: list[Any], kind: str) -> None:
    said, failing = LATER_ROUNDS[kind]
    for number, rank in enumerate(ranks):
        found = rank[kind]
        assert batches(found) == [("train", step, 2.0) for step in range(2)]
        assert others(found) == others(rank["plain"]) and not found["enabled"]
        assert len(found["said"]) == 1
        assert (said if number in failing else "failed on another rank") in found["said"][0]


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
def test_a_share_that_fails_once_all_is_exchanged(ranks: list[Any]) -> None:
    first, second = (rank["after the last"] for rank in ranks)
    assert [row[1] for row in batches(first)][:3] == [0, 1, 2], "the other rank has what both exchanged"
    assert not first["enabled"] and not second["enabled"]
    assert "only here" in second["said"][0] and "failed on another rank" in first["said"][0]


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
def test_a_round_that_was_not_announced_is_refused_on_every_rank(ranks: list[Any]) -> None:
    for rank in ranks:
        assert batches(rank["unannounced"]) == [] and not rank["unannounced"]["enabled"]
        assert "more=True" in rank["unannounced"]["said"][0]


@pytest.mark.documents("reliability/share-raises-on-one-of-several-ranks")
def test_readings_outside_a_trainer_wait_for_no_rank_that_failed(ranks: list[Any]) -> None:
    read = {"plain": 4, "two rounds": 4, "may follow": 4, "third": 2, "on rank 0": 1, "first": 0, "second round": 2}
    for number, rank in enumerate(ranks):
        for kind, times in read.items():
            found = rank["outside"][kind]
            assert found["taken"] == [[2.0, 2.0]] * times + [[2.0]] * (STEPS - times), kind
            assert found["enabled"] == (times == STEPS) and len(found["said"]) == (times < STEPS), kind
        failed = rank["outside"]["second round"]["said"][0]
        assert ("only here" if number == 1 else "failed on another rank") in failed


@pytest.mark.documents("reliability/share-differs-in-size-from-rank-to-rank")
def test_shares_of_different_sizes(ranks: list[Any]) -> None:
    for number, rank in enumerate(ranks):
        found = rank["differs"]
        assert batches(found) == [("train", 0, 2.0), ("train", 1, 2.0)]
        assert others(found) == others(rank["plain"])
        assert f"share() gave {number + 1} numbers here, and another number on other ranks" in found["said"][0]


@pytest.mark.documents("reliability/share-yields-what-ranks-cannot-exchange")
def test_a_share_without_numbers_on_one_rank(ranks: list[Any]) -> None:
    for number, rank in enumerate(ranks):
        assert batches(rank["meta"]) == [("train", 0, 2.0)]
        assert ("meta device" if number else "failed on another rank") in rank["meta"]["said"][0]


def others(found: dict[str, Any]) -> Any:
    return [row for row in found["rows"] if not row[2].startswith("mine") and isinstance(row[3], float)]


@pytest.mark.documents("reliability/state-dict-of-a-controller-raises-on-one-of-several-ranks")
def test_a_state_that_cannot_be_saved_on_one_rank_ends_the_run_on_both(ranks: list[Any]) -> None:
    assert ranks[0]["saved"].startswith("RankFailed: the state of a hook could not be saved on rank 1")
    assert ranks[1]["saved"].startswith("HookError: Stateless") and "only here" in ranks[1]["saved"]
