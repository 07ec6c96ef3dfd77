"""Two ranks extract and score what one process over all data would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback
from tests.callback.runs import assert_bit_equal
from tests.hooks.detectors.contrasts import Reader, batches
from tests.models import BLOCKS, llama, trainer
from tests.vectors.extraction.program_extraction_on_ranks import HELD_OUT, METHODS, PAIRS, detector, extract, rows


def in_one_process() -> dict[str, Any]:
    watch = HookCallback(detector())
    # The same batches, so that activations are the same to the bit.
    data = [
        DataLoader([batch for rank in rows(pairs, seed) for batch in batches(rank)], batch_size=None)  # type: ignore[arg-type]
        for pairs, seed in ((PAIRS, 0), (HELD_OUT, 5))
    ]
    return extract(trainer(watch), Reader(llama()), watch.detectors[0], *data)


def side_of_the_first_rank() -> torch.Tensor:
    side = ContrastDetector("lm_head")
    trainer(HookCallback(side)).predict(Reader(llama()), batches(rows(PAIRS, 0)[0]))
    return side.vectors(force=True)["model.lm_head"]


def test_two_ranks_extract_what_one_process_would(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.vectors.extraction.program_extraction_on_ranks",
        str(tmp_path),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_bit_equal(first, second)
    assert_close(first["side"], side_of_the_first_rank(), rtol=1e-6, atol=1e-9)
    assert first["refused"] == "the layers' widths differ between ranks: [[4, 3], [4, 4]]"
    wanted = in_one_process()
    assert first["vectors"].keys() == set(METHODS)
    for method, vectors in wanted["vectors"].items():
        assert list(first["vectors"][method]) == list(vectors) and len(vectors) == BLOCKS
        assert_close(first["vectors"][method], vectors, rtol=1e-6, atol=1e-9)
    assert_close(first["moments"], wanted["moments"], rtol=1e-11, atol=1e-14)
    assert next(iter(first["moments"].values()))[0] == sum(PAIRS)
    assert len(first["reliability"]) == BLOCKS
    for found, expected in zip(first["reliability"], wanted["reliability"], strict=True):
        assert found[0] == expected[0] and found[-1] == expected[-1] == sum(PAIRS)
        assert_close(found[1:-1], expected[1:-1], rtol=1e-6, atol=1e-7)
    for (layer, auroc, n, d_prime), (of_layer, *expected) in zip(first["scores"], wanted["scores"], strict=True):
        assert layer == of_layer and n == 2 * sum(HELD_OUT) == expected[1]
        assert_close([auroc, d_prime], [expected[0], expected[2]], rtol=1e-6, atol=1e-7)
