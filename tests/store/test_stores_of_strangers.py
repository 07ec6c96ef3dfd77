"""Folders that claim to be stores: what is there is read, or `StoreFileError` names the file, soon."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mi_crow_lightning.errors import StoreFileError
from mi_crow_lightning.store import LocalStore
from tests.counted import calls_in
from tests.strangers import as_json, changed, damaged, outcome

pytestmark = pytest.mark.faults

# Each file of a store, and what reads it.
FILES: dict[str, Callable[[LocalStore], Any]] = {
    "runs/r/meta.json": lambda store: store.get_run_metadata("r"),
    "runs/r/batch_0/metadata.json": lambda store: store.get_detector_metadata("r", 0),
    "runs/r/detectors/batch_0/metadata.json": lambda store: store.get_run_detector_metadata("r"),
    "runs/r/batch_0/l/k.safetensors": lambda store: store.get("r", 0, "l", "k"),
    "runs/r/batch_000001.safetensors": lambda store: store.get_run_batch("r", 1),
    "vectors/joy": lambda store: store.get_tensor("vectors/joy"),
}
DOCUMENTS = [file for file in FILES if file.endswith("json")]


def filled(folder: Path) -> LocalStore:
    store = LocalStore(folder)
    store.put_run_metadata("r", {"model": "tiny", "seeds": [1, 2]})
    store.put_detector_metadata("r", 0, {"tokens": 4}, {"l": {"k": torch.ones(2), "m": torch.ones(1)}})
    store.put_run_detector_metadata("r", {"n": 1}, {"l": {"k": torch.ones(2)}})
    store.put_run_batch("r", 1, [torch.ones(2), torch.zeros(3)])
    store.put_tensor("vectors/joy", torch.ones(4))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return filled(tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="module")
def whole(store: LocalStore) -> dict[str, bytes]:
    return {file: (store.base_path / file).read_bytes() for file in FILES}


def read(store: LocalStore, file: str, content: bytes) -> Any:
    """What reading a file gives once it holds something else; a tensor that metadata list may not be there."""
    path = store.base_path / file
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        return outcome(lambda: FILES[file](store), path, StoreFileError)
    except FileNotFoundError as error:
        if "metadata" not in file:
            raise
        return error
    finally:
        path.write_bytes(before)


@pytest.mark.fuzz
@pytest.mark.documents("reliability/bytes-of-a-stores-file-are-damaged")
@settings(max_examples=250)
@given(st.data())
def test_damaged_bytes(store: LocalStore, whole: dict[str, bytes], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(list(FILES)))
    read(store, file, data.draw(damaged(whole[file])))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/metadata-of-a-store-hold-something-else")
@settings(max_examples=150)
@given(st.data())
def test_metadata_that_hold_something_else(store: LocalStore, whole: dict[str, bytes], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(DOCUMENTS))
    text = as_json(data.draw(changed(json.loads(whole[file]))))
    result = read(store, file, text.encode("utf-8", "surrogatepass"))
    if file == DOCUMENTS[0] and isinstance(result, dict):
        assert repr(result) == repr(json.loads(text))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/the-header-of-a-tensors-file-in-a-store-is-not-true")
@settings(max_examples=150)
@given(st.data())
def test_headers_that_are_not_true(store: LocalStore, whole: dict[str, bytes], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([file for file in FILES if file not in DOCUMENTS]))
    length = struct.unpack("<Q", whole[file][:8])[0]
    header = as_json(data.draw(changed(json.loads(whole[file][8 : 8 + length])))).encode("utf-8", "surrogatepass")
    read(store, file, struct.pack("<Q", len(header)) + header + whole[file][8 + length :])


@pytest.mark.documents("reliability/metadata-of-a-store-are-nested-without-end")
@pytest.mark.parametrize("file", DOCUMENTS)
@pytest.mark.parametrize("deep", ["[" * 5000, '{"a":' * 5000, '{"a": ' + "[" * 300 + "]" * 300 + "}"])
def test_metadata_that_are_nested_deep(tmp_path: Path, file: str, deep: str) -> None:
    assert "is nested deeper than 100 levels" in str(read(filled(tmp_path), file, deep.encode()))


def nested(levels: int, innermost: object) -> Any:
    value = innermost
    for _ in range(levels):
        value = {"a": [value, 1]}
    return value


@pytest.mark.documents("reliability/metadata-to-be-written-are-nested-without-end")
@pytest.mark.parametrize(("levels", "innermost"), [(51, 0), (300, {1}), (450, 0), (100_000, 0), (49, {1})])
def test_deep_metadata_are_refused_soon(tmp_path: Path, levels: int, innermost: object) -> None:
    """300 levels around a set took 10 seconds: each level was tried from the outside to the inside."""
    store, metadata = LocalStore(tmp_path), nested(levels, innermost)

    def put() -> None:
        with pytest.raises(ValueError, match=r"^metadata\['a'\]\[0\]\['a'\].* cannot be written as JSON: ") as caught:
            store.put_run_metadata("r", metadata)
        errors.append(caught.value)

    errors: list[ValueError] = []
    assert calls_in(put) < 20_000
    assert len(str(errors[0]).encode()) <= 2048
    assert ("Object of type set" if levels == 49 else "it is nested deeper than 100 levels") in str(errors[0])


@pytest.mark.documents("reliability/metadata-to-be-written-are-nested-without-end")
def test_what_is_written_is_as_deep_as_what_is_read(tmp_path: Path) -> None:
    store, deepest = LocalStore(tmp_path), {"a": nested(49, {})}
    store.put_run_metadata("r", deepest)
    assert store.get_run_metadata("r") == deepest
    with pytest.raises(ValueError, match="it is nested deeper than 100 levels"):
        store.put_run_metadata("r", {"a": nested(49, {"a": {}})})


@pytest.mark.documents("reliability/metadata-of-a-store-hold-something-else")
@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (None, "was not written by a store: it has no '_tensor_metadata_names'"),
        (["l"], "was not written by a store"),
        ({"l": 3}, "lists 3 of layer 'l', and names are needed, each once"),
        ({"l": "k"}, "lists 'k' of layer 'l'"),
        ({"l": ["k", 1]}, "lists ['k', 1] of layer 'l'"),
        ({"l": ["k"] * 100_000}, "of layer 'l', and names are needed, each once"),
        ({"../../x": ["k"]}, "cannot be a name in the store: it starts with '.'"),
        ({"l": ["/etc/passwd"]}, "cannot be a name in the store: it is absolute"),
    ],
)
def test_lists_of_tensors_that_are_not_lists_of_names(tmp_path: Path, listed: Any, says: str) -> None:
    content = json.dumps({} if listed is None else {"_tensor_metadata_names": listed})
    assert says in str(read(filled(tmp_path), "runs/r/batch_0/metadata.json", content.encode()))


@pytest.mark.documents("reliability/a-file-of-a-store-holds-other-tensors")
@pytest.mark.parametrize(
    ("tensors", "container", "says"),
    [
        (
            {"item_0": torch.ones(1), "item_2": torch.ones(1)},
            "list",
            "is 'list' of ['item_0', 'item_2'], not a list or",
        ),
        ({"a": torch.ones(1)}, "list", "is 'list' of ['a'], not a list or a dict of tensors"),
        ({"tensor": torch.ones(1)}, "tensor", "is 'tensor' of ['tensor'], not a list or a dict of tensors"),
        ({"a": torch.ones(1)}, "x" * 5000, "not a list or a dict of tensors"),
    ],
)
def test_batches_that_are_neither_list_nor_dict(tmp_path: Path, tensors: Any, container: str, says: str) -> None:
    content = save(tensors, metadata={"container": container})
    assert says in str(read(filled(tmp_path), "runs/r/batch_000001.safetensors", content))


@pytest.mark.documents("reliability/a-file-of-a-store-holds-other-tensors")
def test_a_model_of_64_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    store, size = filled(tmp_path), 2**36
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path = store.base_path / "runs/r/batch_0/l/k.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, path.stat().st_size + size)
    says = "holds ['w'], not a single tensor named 'tensor'"
    assert says in str(outcome(lambda: store.get("r", 0, "l", "k"), path, StoreFileError))


@pytest.mark.documents("reliability/a-file-of-a-store-holds-other-tensors")
def test_what_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(ValueError, match=r"a batch that has a tensor with a name of 1001 characters, and at most 1000"):
        store.put_run_batch("r", 0, {"a" * 1001: torch.ones(1)})
    store.put_run_batch("r", 0, {"a" * 1000: torch.ones(1), "": torch.zeros(1)})
    assert set(store.get_run_batch("r", 0)) == {"a" * 1000, ""}


@pytest.mark.documents("reliability/a-link-in-a-store-leads-in-a-circle")
@pytest.mark.parametrize(
    ("link", "listing", "expected"),
    [
        ("runs/x", lambda store: store.list_runs(), ["r"]),
        ("runs/r/batch_7", lambda store: store.list_run_batches("r"), [0, 1]),
        ("runs/r/batch_000007.safetensors", lambda store: store.list_run_batches("r"), [0, 1]),
        ("runs/r/batch_0/x", lambda store: store.list_layers("r", 0), ["l"]),
        ("runs/r/batch_0/l/x.safetensors", lambda store: store.list_keys("r", 0, "l"), ["k", "m"]),
        ("runs/r/detectors/batch_7", lambda store: len(store.get_run_detector_metadata("r")), 1),
        ("runs/r/batch_0/l/x.safetensors", lambda store: len(list(store.iterate("r"))), 2),
    ],
)
def test_links_that_lead_in_a_circle(
    tmp_path: Path, link: str, listing: Callable[[LocalStore], Any], expected: Any
) -> None:
    """To itself, and to one that leads back; the first made `list_runs()` fail for all runs."""
    store = filled(tmp_path)
    path = store.base_path / link
    for target in (path.name, "circle"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        path.with_name("circle").unlink(missing_ok=True)
        path.with_name("circle").symlink_to(path.name)
        assert listing(store) == expected


@pytest.mark.documents("reliability/folders-of-a-store-are-nested-without-end")
def test_folders_that_are_nested_deep(tmp_path: Path) -> None:
    store = filled(tmp_path)
    place = made = store.base_path / "runs" / "deep"
    try:
        made.mkdir()
        for _ in range(500):
            made = made / "d"
            made.mkdir()
        assert store.list_runs() == ["r"]  # folders alone are no run
        (made / "file").touch()
        assert store.list_runs() == ["deep", "r"]
    finally:
        (made / "file").unlink(missing_ok=True)
        while made != place.parent:  # shutil.rmtree calls itself for each level
            made.rmdir()
            made = made.parent
