"""`TraitMonitor` on two processes reads what it reads on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hooks import program_traits_on_ranks as script


def test_two_ranks_read_what_one_process_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.hooks.program_traits_on_ranks", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone, monitor, _ = script.readings()
    assert one["baseline"] == other["baseline"]
    # Ranks have other batches, so the model's own rounding differs.
    for mine, theirs in zip(monitor.baseline(), one["baseline"], strict=True):
        assert list(mine) == [pytest.approx(part, rel=1e-5) if isinstance(part, float) else part for part in theirs]
    assert one["read"].keys() == alone.keys() and len(alone) == 12
    for tag, values in alone.items():
        assert one["read"][tag] == pytest.approx(values, rel=1e-4, abs=1e-6)
        assert "shift" not in tag or (values[0] == 0.0 and abs(values[1]) > 0.05)
