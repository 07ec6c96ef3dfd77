"""DDP and fully_shard in a real Trainer: the readings of two ranks are those of one process over all data."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.program_fit_on_ranks import ACCUMULATE, BREAKS, BROKEN, DEAD, NAMES, SIZES
from tests.metrics.reference import PICTURES, assert_readings, numpys, readings_of


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_two_ranks_read_what_one_process_would(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.metrics.program_fit_on_ranks", kind, str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    assert ranks[0]["steps"] == ranks[1]["steps"]
    assert len(ranks[0]["steps"]) == len(SIZES[0]) // ACCUMULATE
    for step, readings in enumerate(ranks[0]["steps"]):
        parts = [rank["batches"][step * ACCUMULATE + i] for rank in ranks for i in range(ACCUMULATE)]
        expected = {name: readings_of(np.concatenate([part[name] for part in parts]), DEAD) for name in NAMES}
        for name, values in expected.items():
            assert (values["nonfinite_count"] > 0) == (step == 1 and name in BROKEN), name
            if values["nonfinite_count"]:
                values["nonfinite_batch"] = min(BREAKS)
        assert_readings(readings, expected, histograms=PICTURES)
        alone = numpys(np.concatenate([part[NAMES[0]] for part in parts[:ACCUMULATE]]), DEAD)  # rank 0's
        assert 0 < expected[NAMES[0]]["dead_share"] < alone["dead_share"] < 1
