"""`SummingDetector` on two processes: what is read and kept is that of one process on all data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hooks import program_sums_on_ranks as script
from tests.hooks.summing import numpys
from tests.models import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create:UserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sums")
    command = [sys.executable, "-W", "ignore", "-m", "tests.hooks.program_sums_on_ranks", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_readings_are_those_of_all_ranks(ranks: list[Any], stage: str) -> None:
    one, other = (rank["rows"][stage] for rank in ranks)
    segment = "" if stage == "train" else "predict/"
    expected = numpys(torch.cat([rank["seen"][stage] for rank in ranks]).numpy())
    found = {name: one[f"activations_{name}/{segment}{script.LAYER}"] for name in expected}
    assert one == other and found == pytest.approx(expected, rel=1e-12)


def test_two_ranks_go_on_to_the_bit(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank["rows"]["resumed"] == rank["rows"]["train"] and rank["rows"]["train"]


def test_another_number_of_ranks_goes_on_from_what_all_had_seen(folder: Path) -> None:
    state = torch.load(folder / "step=2.ckpt", weights_only=True)["callbacks"][script.watching().state_key]
    parts = [one["hooks"]["spread"]["rows"]["train"] for one in (state, *state["other_ranks"])]  # 2 of (4, 1 + 4)
    watch, seen = script.watching(), script.Tokens()
    runner = trainer(watch, seen, limit_val_batches=0, log_every_n_steps=4, max_steps=4)
    runner.fit(script.Ranked(), ckpt_path=folder / "step=2.ckpt")
    rest = torch.cat(seen.seen).numpy()
    counts = sum(part[1, 1:3].numpy() for part in parts) + np.array([(rest > 0).sum(), rest.size])
    expected = {
        "positive_share": counts[0] / counts[1],
        "least": min(float(parts[0][1, 3]), float(parts[1][1, 3]), rest.min()),
        "most": max(float(parts[0][1, 4]), float(parts[1][1, 4]), rest.max()),
    }
    rows = script.rows(watch)
    assert {name: rows[f"activations_{name}/{script.LAYER}"] for name in expected} == pytest.approx(expected, rel=1e-12)
