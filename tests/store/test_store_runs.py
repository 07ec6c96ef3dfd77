"""Runs: ranges of their batches, their removal, and their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mi_crow_lightning.errors import StoreKeyError
from mi_crow_lightning.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_ranges_pass_over_gaps_and_refuse_bad_steps_at_once(store: LocalStore) -> None:
    for index in (0, 2, 3, 1_000_000):
        store.put_run_batch("r", index, [torch.tensor(index)])

    def read(**bounds: int) -> list[int]:
        return [int(batch[0]) for batch in store.iter_run_batch_range("r", **bounds)]

    assert read() == [0, 2, 3, 1_000_000]
    assert read(start=1, stop=4) == [2, 3]
    assert read(step=2) == [0, 2, 1_000_000]
    assert read(stop=0) == []
    with pytest.raises(ValueError, match="start must be >= 0, got -1"):
        store.iter_run_batch_range("r", start=-1)
    with pytest.raises(ValueError, match="step must be >= 1, got 0"):
        store.iter_run_batch_range("r", step=0)


def test_deleting_a_run_removes_all_of_it(store: LocalStore) -> None:
    store.put("r", 0, "l", "k", torch.ones(1))
    store.put_run_batch("r", 1, [])
    store.put_run_metadata("r", {})
    store.put_run_detector_metadata("r", {}, {})
    store.put("other", 0, "l", "k", torch.ones(1))
    store.delete_run("r")
    store.delete_run("r")
    assert store.list_runs() == ["other"]
    assert [path.name for path in (store.base_path / "runs").iterdir()] == ["other"]


def test_another_prefix_for_the_runs(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, runs_prefix="my/runs")
    assert store.put("r", 0, "l", "k", torch.ones(1)).is_relative_to(tmp_path / "my" / "runs" / "r")
    assert store.put_run_metadata("r", {}) == "my/runs/r/meta.json"
    with pytest.raises(StoreKeyError, match=r"'../runs' would not stay in the store's folder"):
        LocalStore(tmp_path, runs_prefix="../runs")
