"""Two processes: all stop together, at the step in which one of them fails, and its snapshot fails again alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callback.runs import assert_bit_equal

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.documents(
    "reliability/a-rank-gets-values-that-are-not-finite-with-a-nonfinite-alarm",
    "reliability/a-file-that-is-not-a-snapshot-is-replayed",
)
def test_all_ranks_stop_together_and_the_snapshot_replays(tmp_path: Path) -> None:
    ended = run("tests.alarms.program_ranks", str(tmp_path))
    assert ended.returncode == 0, ended.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for seen in ranks:
        assert seen["fired"] == [["model.3", 3, 3, 1]] and seen["steps"] == 4 and seen["whole"]
    assert_bit_equal(dict(ranks[0]["weights"]), dict(ranks[1]["weights"]))
    (file,) = (tmp_path / "snapshot").iterdir()
    assert file.name == "NonFinite-train-step3-rank1.pt"
    again = run("mi_crow_lightning", "replay", str(file), "--model", "tests.alarms.program_ranks:Marked", "--json")
    assert again.returncode == 0, again.stderr[-3000:]
    found = json.loads(again.stdout)
    assert found["same"] and found["layer"] == "model.3" and found["inputs_finite"]
    wrong = run("mi_crow_lightning", "replay", str(tmp_path / "0.pt"), "--model", "tests.alarms.program_ranks:Marked")
    assert wrong.returncode == 2 and "is not a snapshot" in wrong.stderr
