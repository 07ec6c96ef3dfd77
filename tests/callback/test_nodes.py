"""Two nodes of one process each, started by torchrun: callbacks that differ are refused, and a lost rank is named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callback.program_nodes import UNEQUAL, alike
from tests.callback.program_ranks import in_one
from tests.callback.test_ranks import assert_told

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
STRATEGIES = ["ddp", "sharded"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def node(rank: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    place = f"--nnodes 2 --nproc-per-node 1 --node-rank {rank} --master-addr 127.0.0.1 --master-port {port}"
    agent = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", *place.split(), "--monitor-interval", "0.1"]
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [*agent, "-m", "tests.callback.program_nodes", str(folder)],
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def _end(agent: subprocess.Popen[bytes]) -> None:
    """End an agent; one that waits for the other node may not heed the signal to stop."""
    agent.terminate()
    try:
        agent.wait(timeout=5)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait(timeout=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of both nodes; the agent of the first waits for minutes for the other one, whose process was killed."""
    folder, port = tmp_path_factory.mktemp("nodes"), free_port()
    nodes = [node(rank, port, folder) for rank in range(2)]
    try:
        nodes[1].wait(timeout=150)
        end = time.monotonic() + 30
        while not (folder / "lost.pt").exists() and nodes[0].poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        for one in nodes:
            _end(one)
    assert len(list(folder.glob("*.pt"))) == 3, (folder / "0.log").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return alike(in_one)


@pytest.mark.documents("reliability/two-nodes-that-torchrun-starts-ddp-or-modelparallelstrategy")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("run", ["fit", "predict"])
def test_readings_of_two_nodes_are_those_of_all_data(
    ranks: list[Any], alone: dict[str, Any], strategy: str, run: str
) -> None:
    assert_told([rank[strategy][run] for rank in ranks], alone[run], same_calls=run == "predict")


# The words that follow "not the same on all ranks" or the like, for each of the callbacks that differ.
WORDS = {
    "layers": "detectors[0].layers: model.0, model.1, model.2, model.3, model.4, model.5 on rank 0; model.0 on rank 1",
    "statistics": "detectors[0].readings: mean, histogram on rank 0; mean, max, histogram on rank 1",
    "histogram": "detectors[0].readings: mean, histogram on rank 0; mean on rank 1",
    "channels": "detectors[0].readings: mean, histogram on rank 0; mean, histogram, channel_rms on rank 1",
    "threshold": "detectors[0].dead_threshold: 0.0 on rank 0; 0.5 on rank 1",
    "tokens": "detectors[0].tokens: Tokens('all') on rank 0; Tokens('last') on rank 1",
    "directions": "on rank 0; 10, with b_mean, b_std, b_min, b_max, b_cosine on rank 1",
    "interval": "log_every_n_steps: 1 on rank 0; 2 on rank 1",
    "interval of the Trainer": "log_every_n_steps: 1 on rank 0; 2 on rank 1",
    "schedule": "on rank 0; Schedule(batches=frozenset({1})) on rank 1",
    "prefix": "detectors[0].tags: activations on rank 0; mine on rank 1",
    "hook_id": "detectors[0].hook_id: a on rank 0; b on rank 1",
    "order": "detectors[0]: ActivationStatistics on rank 0; ProjectionDetector on rank 1",
    "one more": "detectors[1]: nothing on rank 0; ProjectionDetector on rank 1",
    "controller": "controllers[0]: nothing on rank 0; SteeringController on rank 1",
    "per_dataloader": "per_dataloader: False on rank 0; True on rank 1",
    "dry_run": "dry_run: False on rank 0; True on rank 1",
    "number of callbacks": "HookCallbacks: 1 on rank 0; 2 on rank 1",
}


def assert_never_began(found: dict[str, Any]) -> None:
    assert found["batches"] == [] and found["handles"] == 0 and found["seconds"] < 5


@pytest.mark.documents(
    "reliability/hooks-layers-statistics-or-tokens-differ-between-ranks",
    "reliability/intervals-or-schedules-differ-between-ranks",
    "reliability/a-rank-has-one-callback-more",
)
@pytest.mark.parametrize("name", WORDS)
def test_a_callback_that_differs_is_refused_on_every_rank_before_the_first_batch(ranks: list[Any], name: str) -> None:
    found = [rank["different"][name] for rank in ranks]
    assert found[0]["said"] == found[1]["said"] and len(found[0]["said"]) == 1
    (said,) = found[0]["said"]
    assert said.startswith("RanksDiffer: HookCallback is not the same on all ranks") and WORDS[name] in said
    assert said.count("\n") == (2 if name == "order" or name == "dry_run" else 1)  # nothing else is named
    for one in found:
        assert_never_began(one)


@pytest.mark.documents("reliability/hooks-cannot-be-registered-on-one-rank")
def test_a_rank_that_cannot_start_ends_the_run_on_all(ranks: list[Any]) -> None:
    on_0, on_1 = (rank["different"]["no such layer"] for rank in ranks)
    (own,) = on_1["said"]
    assert own.startswith("LayerNotFound: layer 'block:7': the model has 6 blocks")
    (said,) = on_0["said"]
    assert said == f"RanksDiffer: rank 1 could not start the run, so it ends on all ranks. Rank 1 says: {own}"
    for one in (on_0, on_1):
        assert_never_began(one)


@pytest.mark.documents("reliability/another-callback-raises-at-the-start-on-one-rank")
def test_another_callback_that_raises_on_one_rank_ends_the_run_on_all(ranks: list[Any]) -> None:
    on_0, on_1 = (rank["breaks off"] for rank in ranks)
    assert on_1["said"] == ["RuntimeError: this rank stops"]
    (said,) = on_0["said"]
    assert said.endswith("Rank 1 says: RuntimeError: this rank stops")
    assert_never_began(on_0)


@pytest.mark.documents("reliability/the-callback-is-on-one-rank-only")
@pytest.mark.parametrize("has", [0, 1])
def test_a_rank_without_the_callback_is_named(ranks: list[Any], has: int) -> None:
    """Runs on all ranks afterwards are not disturbed, and leave nothing in the store."""
    refused, again = (ranks[has]["absent"][2 * has + i] for i in range(2))
    (said,) = refused["said"]
    assert said.startswith(f"RanksDiffer: rank {1 - has} of 2 has no such HookCallback, and rank {has} has one")
    assert_never_began(refused)
    assert again["said"] == [] and again["batches"] == [0, 1]
    keys_before, keys_after = ranks[has]["keys"]
    assert keys_before == keys_after


@pytest.mark.documents("reliability/strengths-or-vectors-differ-between-ranks")
@pytest.mark.parametrize("name", UNEQUAL)
def test_strengths_and_vectors_that_differ_are_reported(ranks: list[Any], name: str) -> None:
    found = [rank["unequal"][name] for rank in ranks]
    assert found[0]["said"] == found[1]["said"] and [one["batches"] for one in found] == [[0, 1]] * 2
    (said,) = found[0]["said"]
    words = "1.0 on rank 0; 2.0 on rank 1" if name == "strength" else "one with the hash"
    assert said.startswith("Strengths or vectors are not the same on all ranks") and words in said


@pytest.mark.documents("reliability/a-rank-does-not-answer-when-the-run-starts")
def test_a_rank_that_does_not_answer_ends_the_wait(ranks: list[Any]) -> None:
    assert ranks[0]["silent"].startswith("not every rank has said within 0:00:00.300000 which hooks it has")


@pytest.mark.documents("reliability/a-trainer-for-one-process-beside-the-process-group-of-an-earlier-run")
def test_a_trainer_for_one_process_is_refused_while_there_are_ranks(ranks: list[Any]) -> None:
    (said,) = ranks[0]["alone"]["said"]
    assert said.startswith(
        "RanksDiffer: the Trainer runs in 1 process, and torch's process group of an earlier run has"
    )
    assert_never_began(ranks[0]["alone"])


@pytest.mark.documents("reliability/a-rank-is-killed-during-a-run")
def test_a_rank_that_is_killed_ends_the_others_with_the_name_of_the_collective(folder: Path) -> None:
    found = torch.load(folder / "lost.pt", weights_only=True)
    (said,) = found["said"]
    assert said.startswith("RuntimeError: all_gather of readings, ")
    assert " numbers, broke off on rank 0 of 2: another rank has ended, or waits elsewhere." in said
    assert found["handles"] == 0 and found["seconds"] < 20
