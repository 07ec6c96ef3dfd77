"""Metadata of runs and detectors."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning.store import LocalStore

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(meta=st.dictionaries(st.text(), JSON, max_size=4))
def test_metadata_comes_back(meta: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        assert store.put_run_metadata("r", meta) == "runs/r/meta.json"
        assert store.get_run_metadata("r") == meta


def test_metadata_that_is_not_there_is_empty(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("r", 0, "l", "k", torch.ones(1))
    assert store.get_run_metadata("r") == {}
    assert store.get_detector_metadata("r", 0) == ({}, {})
    assert store.get_run_detector_metadata("r") == []
    with pytest.raises(FileNotFoundError, match=r"No batch 1 .*there are: 0"):
        store.get_detector_metadata("r", 1)


CIRCLE: dict[str, Any] = {}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"fine": 1, "bad": {1, 2}}, "metadata['bad']"),
        ({"a": {"b": [0, torch.ones(1)]}}, "metadata['a']['b'][1]"),
        ({"a": {(1, 2): 3}}, "metadata['a'][(1, 2)]"),
        ({"a": CIRCLE}, "metadata['a']['self']"),
    ],
)
def test_metadata_that_is_no_json_names_the_key(tmp_path: Path, bad: dict[str, Any], where: str) -> None:
    store = LocalStore(tmp_path)
    store.put_run_metadata("r", {"kept": True})
    tensors = {"l": {"k": torch.ones(1)}}
    for write in (
        lambda: store.put_run_metadata("r", bad),
        lambda: store.put_detector_metadata("r", 0, bad, tensors),
        lambda: store.put_run_detector_metadata("r", bad, tensors),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{where} cannot be written as JSON: ")):
            write()
    assert store.get_run_metadata("r") == {"kept": True}
    assert store.list_run_batches("r") == []


def test_metadata_must_be_a_dict_without_the_stores_own_key(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for write in (store.put_run_metadata, lambda run, meta: store.put_detector_metadata(run, 0, meta, {})):
        with pytest.raises(TypeError, match="metadata must be a dict, got list"):
            write("r", [])
    with pytest.raises(ValueError, match=re.escape("metadata['_tensor_metadata_names'] is kept for the store")):
        store.put_detector_metadata("r", 0, {"_tensor_metadata_names": 1}, {})


@pytest.mark.documents("reliability/a-stored-file-is-damaged")
def test_damaged_metadata_names_its_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_run_metadata("r", {})
    path = tmp_path / "runs" / "r" / "meta.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"meta\.json' is not JSON: Expecting"):
        store.get_run_metadata("r")
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"meta\.json' holds a JSON list, not an object"):
        store.get_run_metadata("r")
    store.put_detector_metadata("r", 0, {}, {})
    (tmp_path / "runs" / "r" / "batch_0" / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by a store: it has no '_tensor_metadata_names'"):
        store.get_detector_metadata("r", 0)


def test_detectors_of_a_batch_come_back(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    given_tensors = {
        "h.1": {"b": torch.ones(2), "a": torch.zeros(())},
        "h.0": {"a": torch.ones(1)},
        "none": {},
    }
    assert store.put_detector_metadata("r", 3, {"n": 1}, given_tensors) == "runs/r/batch_3"
    metadata, tensors = store.get_detector_metadata("r", 3)
    assert metadata == {"n": 1}
    assert list(tensors) == ["h.1", "h.0"]
    assert list(tensors["h.1"]) == ["b", "a"]
    assert store.get_detector_metadata_by_layer_by_key("r", 3, "h.1", "b").tolist() == [1.0, 1.0]
    store.put_detector_metadata("r", 3, {"n": 2}, {"h.0": {"a": torch.zeros(1)}})
    assert store.get_detector_metadata("r", 3) == ({"n": 2}, {"h.0": {"a": 0.0}})


def test_a_batch_with_metadata_alone_is_a_batch(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_detector_metadata("r", 0, {"n": 1}, {})
    assert list(store.iter_run_batches("r")) == [{}]


def test_a_detector_tensor_that_is_gone_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_detector_metadata("r", 0, {}, {"l": {"a": torch.ones(1), "b": torch.ones(1)}})
    (tmp_path / "runs" / "r" / "batch_0" / "l" / "a.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No key 'a' .*there are: 'b'"):
        store.get_detector_metadata("r", 0)


def test_detectors_of_a_run_are_appended(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for n in range(11):
        tensors = {"h.0": {"mean": torch.tensor(n)}}
        assert store.put_run_detector_metadata("r", {"n": n}, tensors) == "runs/r/detectors"
    kept = store.get_run_detector_metadata("r")
    assert [(metadata["n"], int(tensors["h.0"]["mean"])) for metadata, tensors in kept] == [(n, n) for n in range(11)]
    assert store.list_run_batches("r") == []


def test_an_unfinished_part_is_written_over(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_run_detector_metadata("r", {"n": 0}, {"l": {"a": torch.zeros(1)}})
    store.put_run_detector_metadata("r", {"n": 1}, {"l": {"a": torch.zeros(1)}})
    (tmp_path / "runs" / "r" / "detectors" / "batch_1" / "metadata.json").unlink()
    assert [metadata for metadata, _ in store.get_run_detector_metadata("r")] == [{"n": 0}]
    store.put_run_detector_metadata("r", {"n": 2}, {"l": {"b": torch.ones(1)}})
    assert store.get_run_detector_metadata("r")[1] == ({"n": 2}, {"l": {"b": 1.0}})
