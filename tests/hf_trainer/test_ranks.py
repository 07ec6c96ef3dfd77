"""Two processes with DDP: what they read, change and save is what one process on all data would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hf_trainer import program_ranks as script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", "-m", "tests.hf_trainer.program_ranks", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_read_what_one_process_reads(ranks: list[Any], tmp_path: Path) -> None:
    alone = script.fit(tmp_path, 4, arguments=script.STILL)
    first, second = (told["still"] for told in ranks)
    assert first["rows"] == second["rows"] and first["effects"] == second["effects"] == alone["effects"]
    assert [row[:3] for row in first["rows"]] == [row[:3] for row in alone["rows"]] and len(alone["rows"]) == 40
    # Two ranks call a layer twice where one process calls it once.
    expected = [value * (2 if tag.startswith("steering_fired") else 1) for *_, tag, value in alone["rows"]]
    assert [row[3] for row in first["rows"]] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.skipif(not script.RESUMES, reason="transformers 4 resumes no ranks on a CPU with this torch")
def test_two_ranks_resume_where_they_were(ranks: list[Any]) -> None:
    for told in ranks:
        whole, resumed = told["whole"], told["resumed"]
        assert resumed["rows"] == [row for row in whole["rows"] if row[1] > 3] and resumed["rows"]
        assert resumed["effects"] == whole["effects"]
        assert all(map(torch.equal, whole["weights"].values(), resumed["weights"].values()))


def test_callbacks_that_differ_between_ranks_are_refused(ranks: list[Any]) -> None:
    for told in ranks:
        assert "HookTrainerCallback is not the same on all ranks" in told["refused"]
        assert "model.layers.0 on rank 0; model.layers.0, model.layers.1" in told["refused"]


def test_an_alarm_of_one_rank_stops_all_of_them_before_the_step(ranks: list[Any]) -> None:
    first, second = (told["alarmed"] for told in ranks)
    assert first["fired"] == second["fired"] == [["model.layers.1", 3, 2, 1]] and first["steps"] == second["steps"] == 3
    assert all(bool(one.isfinite().all()) for one in first["weights"].values())
    assert all(map(torch.equal, first["weights"].values(), second["weights"].values()))
