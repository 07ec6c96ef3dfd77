"""`LinearProbe` on two processes learns and reads what it does on one that has the batches of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callback.runs import assert_bit_equal
from tests.hooks import program_probes_on_ranks as script


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", "-m", "tests.hooks.program_probes_on_ranks", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_train_the_probes_of_one_process(ranks: list[dict[str, Any]]) -> None:
    alone, probe = script.fitted(1)
    assert_bit_equal(ranks[0]["probes"], ranks[1]["probes"])
    for name, value in probe.state_dict()["probes"].items():
        assert (ranks[0]["probes"][name] - value).abs().max() <= 1e-3 * value.abs().max(), name
    assert ranks[0]["read"].keys() == alone.keys() and len(alone) == 96
    for tag, value in alone.items():  # the model's own rounding differs, and with it a pair of 1 % apart
        assert ranks[0]["read"][tag] == pytest.approx(value, rel=1e-3, abs=0.02 if "auroc" in tag else 1e-6), tag


def test_labels_that_one_rank_lacks_put_the_probe_off_on_both_and_nobody_waits(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert not rank["enabled"] and rank["steps"].tolist() == [2.0] * 4 and not rank["failed"]
