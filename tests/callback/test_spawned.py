"""Runs in processes of their own: the same readings, and what does not come back is refused, never empty or stale."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callback.program_ranks import HookCallback, detectors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spawned")
    command = [sys.executable, "-W", "ignore", "-m", "tests.callback.program_spawned", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.documents(
    "compatibility/ddp-spawn-ddp-fork/detectors",
    "compatibility/ddp-spawn-ddp-fork/controllers",
    "compatibility/ddp-spawn-ddp-fork/logging",
)
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_what_stays_in_the_processes_is_refused_outside(folder: Path, strategy: str) -> None:
    one, other = (load(folder / f"{strategy}.{rank}.pt") for rank in range(2))
    assert one["rows"] == other["rows"] and one["effects"] == other["effects"] and one["report"] == "degraded"
    assert torch.equal(one["vector"], other["vector"])
    found = load(folder / "found.pt")[strategy]
    assert len(found["metrics"]) > 50
    last = {tag: value for _, _, tag, value in one["rows"]}
    single = {tag: value for tag, value in found["metrics"].items() if "block:" not in tag}
    assert single == pytest.approx(last, rel=1e-6, nan_ok=True)  # these come back
    names = ("history()", "effects()", "report()", *["ContrastDetector"] * 3, "get_captured()")
    for name, said in zip(names, found["said"], strict=True):
        assert said.startswith(f"{name} has no results of the last run: it took place in other processes")
    assert found["after"]  # a later run in the process itself is told again


def test_copies_do_not_count_as_runs() -> None:
    watch = HookCallback(detectors())
    assert copy.deepcopy(watch).history() == watch.history() == []
