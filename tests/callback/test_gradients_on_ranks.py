"""Gradients, weights and tokens on two processes: what a loop without Lightning and numpy make of the data of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.callback import program_gradients_on_ranks as script
from tests.callback.program_gradients_on_ranks import EMPTY, LAYERS, RATE, SIZES, UNEVEN, Learning
from tests.callback.program_ranks import in_one
from tests.hooks.detectors.gradients import by_hand
from tests.metrics.reference import readings_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", "-m", "tests.callback.program_gradients_on_ranks", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def expected() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The gradients at tokens and the readings of weights of each step, by hand on one process."""
    module, found = Learning(SIZES), []
    data = [module.batches(rank) for rank in range(2)]
    for step in range(2):
        batches = [data[rank][2 * step + i] for rank in range(2) for i in range(2)]
        each = [
            by_hand(module, LAYERS, lambda batch=batch: module.loss(batch) / 2, batch["attention_mask"])  # type: ignore[misc]
            for batch in batches
        ]
        tokens = {layer: np.concatenate([one[layer] for one in each]) for layer in LAYERS}
        module.zero_grad()
        for batch in batches:
            (module.loss(batch) / 2 / 2).backward()  # two micro-batches, and the mean of two ranks
        weights = {}
        with torch.no_grad():
            for layer in LAYERS:
                parameters = [*module.get_submodule(layer).parameters()]
                norm = float(torch.cat([p.double().flatten() for p in parameters]).norm())
                gradient = float(torch.cat([p.grad.double().flatten() for p in parameters]).norm())  # type: ignore[union-attr]
                update = RATE * gradient
                of_step = {"norm": norm, "gradient_norm": gradient, "update_norm": update}
                weights[layer] = {**of_step, "update_ratio": update / norm, "skipped_steps": 0.0}
            for parameter in module.parameters():
                parameter -= RATE * parameter.grad  # type: ignore[operator]
        found.append((tokens, weights))
    return found


@pytest.mark.parametrize("run", ["ddp", "sharded"])
def test_gradients_of_both_ranks_are_read_together(ranks: Any, expected: Any, run: str) -> None:
    for rank in ranks:
        assert len(rank[run]["gradients"]) == 2
        for of_step, (tokens, _) in zip(rank[run]["gradients"], expected, strict=True):
            assert of_step.keys() == tokens.keys()
            for layer, values in tokens.items():
                reference, scale = readings_of(values), float(np.abs(values).max())
                read = of_step[layer]
                assert sum(read["histogram"]) == sum(reference["histogram"])
                for name in read.keys() - {"histogram", "channel_rms", "nonfinite_batch"}:
                    close = pytest.approx(reference[name], rel=1e-3, abs=1e-4 * scale)
                    assert read[name] == close, (layer, name)


@pytest.mark.parametrize("run", ["ddp", "sharded"])
def test_weights_are_those_of_a_plain_loop(ranks: Any, expected: Any, run: str) -> None:
    for rank in ranks:
        assert len(rank[run]["weights"]) == 2
        for of_step, (_, weights) in zip(rank[run]["weights"], expected, strict=True):
            assert of_step.keys() == weights.keys()
            for layer, values in weights.items():
                assert of_step[layer] == pytest.approx(values, rel=1e-4), layer


def test_a_step_that_both_ranks_skip_counts_once(ranks: Any) -> None:
    for rank in ranks:
        assert rank["skipped"]["weights"][0] == {layer: {"skipped_steps": 1.0} for layer in LAYERS}


def assert_same_tokens(found: list[Any], alone: list[Any]) -> None:
    assert len(found) == len(alone) > 0
    for one, other in zip(found, alone, strict=True):
        assert one.keys() == other.keys() == {*LAYERS}
        for layer, values in other.items():
            assert one[layer] == pytest.approx(values, rel=1e-4, abs=1e-6), layer


def test_tokens_of_a_fit_are_those_of_one_process(ranks: Any) -> None:
    alone = script.fitted(in_one)["activations"][:1]  # the next step is of other weights: losses are means of rows
    for rank in ranks:
        for run in ("ddp", "sharded"):
            assert_same_tokens(rank[run]["activations"][:1], alone)


@pytest.mark.parametrize("place", [0, 1])
def test_tokens_of_uneven_ranks_are_those_of_one_process(ranks: Any, place: int) -> None:
    alone = script.predicted(in_one, (UNEVEN, EMPTY)[place])
    for rank in ranks:
        assert_same_tokens(rank["predicted"][place], alone)
