"""DDP and fully_shard in a real Trainer: the readings of two ranks are those of one process over all data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_crow_lightning.hooks.reading import Reading
from tests.metrics.reference import assert_readings, numpys
from tests.metrics.two_processes import ACCUMULATE, NAMES, SIZES


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_two_ranks_read_what_one_process_would(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.metrics.two_processes", kind, str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    steps = sorted({step for step, *_ in ranks[0]["rows"]})
    assert len(steps) == len(SIZES[0]) // ACCUMULATE
    for index, step in enumerate(steps):
        found = [Reading(layer, name, value) for at, layer, name, value in ranks[0]["rows"] if at == step]
        parts = [rank["batches"][index * ACCUMULATE + i] for rank in ranks for i in range(ACCUMULATE)]
        expected = {name: numpys(np.concatenate([part[name].numpy() for part in parts])) for name in NAMES}
        assert_readings(found, expected)
