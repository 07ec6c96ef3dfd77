"""Steering on two processes: what is told is equal on both, and that of one process over all data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.loggers import read_compact
from tests.callback.program_effects_on_ranks import LAYER, V
from tests.callback.test_effects_over_batches import over_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.callback.program_effects_on_ranks", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def tokens(ranks: list[Any], stage: str, name: str) -> list[Tensor]:
    return [x for rank in ranks for x in rank[stage][name]]


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_effects_are_those_of_all_ranks(ranks: list[Any], stage: str) -> None:
    pairs = list(zip(tokens(ranks, stage, "made"), tokens(ranks, stage, "passed_on"), strict=True))
    ratios = []
    for made, passed_on in pairs:
        changed = (made != passed_on).any(-1)
        ratios += ((passed_on - made).norm(dim=-1) / made.norm(dim=-1))[changed].tolist()
    one, other = (rank[stage]["effects"] for rank in ranks)
    assert one == other
    assert len(one) == 1 and one[0][:5] == ("steer", LAYER, stage, len(ratios), len(pairs))
    assert one[0][5:7] == pytest.approx([sum(ratios) / len(ratios), max(ratios)], rel=1e-5)
    rows = dict(ranks[0][stage]["rows"])
    assert rows == dict(ranks[1][stage]["rows"])
    segment = "" if stage == "train" else "predict/"
    assert rows[f"steering_tokens/{segment}steer/{LAYER}"] == len(ratios)


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_projections_are_those_of_all_ranks(ranks: list[Any], stage: str) -> None:
    pairs = zip(tokens(ranks, stage, "made"), tokens(ranks, stage, "passed_on"), strict=True)
    along = torch.cat([made[(made != passed_on).any(-1)] for made, passed_on in pairs]) @ (V / V.norm()).double()
    rows = dict(ranks[0][stage]["rows"])
    segment = "" if stage == "train" else "predict/"
    found = [rows[f"projection_{name}/{segment}{LAYER}"] for name in ("mean", "std", "min", "max")]
    expected = [along.mean(), along.std(correction=0), along.min(), along.max()]
    assert found == pytest.approx([float(value) for value in expected], rel=1e-4, abs=1e-6)


def test_batches_of_all_ranks_are_joined_by_their_numbers(ranks: list[Any], folder: Path) -> None:
    found = over_batches(list(read_compact(folder / "predict" / "version_0")))
    assert list(found) == [(batch, f"steer/{LAYER}") for batch in (1, 2, 3)]  # of which rank 1 has two
    for (batch, _), quantities in found.items():
        ratios, fired = [], 0
        for rank in ranks:
            told = rank["predict"]
            ends = [*told["calls"], len(told["made"]), len(told["made"])]
            pairs = list(zip(told["made"], told["passed_on"], strict=True))[ends[batch - 1] : ends[batch]]
            for made, passed_on in pairs:
                changed = (made != passed_on).any(-1)
                ratios += ((passed_on - made).norm(dim=-1) / made.norm(dim=-1))[changed].tolist()
                fired += bool(changed.any())
        expected = (len(ratios), fired, sum(ratios) / len(ratios), max(ratios))
        assert tuple(quantities.values()) == pytest.approx(expected, rel=1e-5)
    assert over_batches(list(read_compact(folder / "train" / "version_0"))) == {}
