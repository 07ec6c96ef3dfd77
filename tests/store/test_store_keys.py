"""Names and links that would leave the store's folder are refused."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning.errors import StoreKeyError
from mi_crow_lightning.store import LocalStore, keys

ONE = torch.ones(1)
HOSTILE = {
    "": "is empty",
    " \n": "is empty",
    ".": "starts with '.'",
    "..": "starts with '.'",
    ".hidden": "starts with '.'",
    "../../etc": "starts with '.'",
    "/etc/passwd": "is absolute",
    "\\\\host\\share": "is absolute",
    "a/b": "holds a path separator",
    "a\\b": "holds a path separator",
    "a/../../b": "holds a path separator",
    "a\0b": "holds a NUL",
    "\ud800": "is not valid UTF-8",
    "x" * 256: "takes 256 bytes",
    "é" * 128: "takes 256 bytes",
}
FOR_WINDOWS = {
    "CON": "is a device on Windows",
    "nul": "is a device on Windows",
    "Aux.h.0": "is a device on Windows",
    "prn .txt": "is a device on Windows",
    "com1": "is a device on Windows",
    "LPT\xb3.x": "is a device on Windows",
    "CONOUT$": "is a device on Windows",
}


@pytest.mark.documents("reliability/a-name-that-windows-would-take-for-another")
@pytest.mark.parametrize(("name", "why"), list((HOSTILE | FOR_WINDOWS).items()), ids=range(len(HOSTILE | FOR_WINDOWS)))
def test_hostile_names_are_refused_and_nothing_is_written(tmp_path: Path, name: str, why: str) -> None:
    store = LocalStore(tmp_path / "store")
    message = f"{re.escape(repr(name))} cannot be a name in the store: it {re.escape(why)}.*Allowed: .*bytes"
    for names in ((name, "l", "k"), ("r", name, "k"), ("r", "l", name)):
        run, layer, key = names
        with pytest.raises(StoreKeyError, match=message):
            store.put(run, 0, layer, key, ONE)
        with pytest.raises(StoreKeyError, match=message):
            store.get(run, 0, layer, key)
    for call in (store.delete_run, store.list_run_batches, store.get_run_metadata):
        with pytest.raises(StoreKeyError, match=message):
            call(name)
    with pytest.raises(StoreKeyError, match=message):
        store.put_detector_metadata("r", 0, {}, {"fine": {"k": ONE}, name: {"k": ONE}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.documents("reliability/a-name-that-windows-would-take-for-another")
def test_names_that_windows_writes_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    for name in ("layer.", "layer "):
        with pytest.raises(StoreKeyError, match=r"ends in a space or '\.', which Windows leaves out"):
            store.put("r", 0, name, "k", ONE)
    for name in ("console", "aux1", "my.con", "com10", "comx", "nulls.0", "h.0:3", "a?"):
        store.put("r", 0, name, name + ".", ONE)  # the key's file ends in .safetensors
    monkeypatch.setattr(keys, "_ON_WINDOWS", True)
    for name in ("2026-11-27T10:00", 'say "a"', "a?", "h.*", "a|b", "a<b>", "a\nb"):
        with pytest.raises(StoreKeyError, match=r"it holds .*, which Windows does not allow\. Allowed: "):
            store.put("r", 0, name, "k", ONE)


def test_long_names_are_refused_in_few_words(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for call in (store.get_tensor, store.get_run_metadata):
        for name in ("x" * 10**6, "a/" * 10**6, "\ud800" * 10**5):
            with pytest.raises(StoreKeyError) as caught:
                call(name)
            assert len(str(caught.value).encode()) <= 2048


@pytest.mark.parametrize("name", [None, 3, b"a", Path("a")])
def test_names_that_are_no_strings_are_refused(tmp_path: Path, name: str) -> None:
    message = re.escape(f"{name!r} cannot be a name in the store: it is a {type(name).__name__}, not a str")
    with pytest.raises(StoreKeyError, match=message):
        LocalStore(tmp_path).put("r", 0, name, "k", ONE)


@pytest.mark.parametrize("index", [-1, True, False, 1.0, "1", None, 2**63])
def test_batch_indices_that_are_no_whole_numbers_are_refused(tmp_path: Path, index: int) -> None:
    store = LocalStore(tmp_path)
    message = re.escape(f"batch_index must be an int >= 0 (and below 2**63), not a bool; got {index!r}")
    with pytest.raises(StoreKeyError, match=message):
        store.put("r", index, "l", "k", ONE)
    with pytest.raises(StoreKeyError, match=message):
        store.put_run_batch("r", index, [])


def test_the_longest_names_fit_with_their_suffix(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("r" * 255, 0, "l" * 255, "k" * 243, ONE)
    assert store.list_keys("r" * 255, 0, "l" * 255) == ["k" * 243]
    with pytest.raises(StoreKeyError, match=r"takes 244 bytes. Allowed: .* at most 243 bytes"):
        store.put("r", 0, "l", "k" * 244, ONE)


def test_a_layer_cannot_take_the_place_of_the_metadata(tmp_path: Path) -> None:
    with pytest.raises(StoreKeyError, match=r"'MetaData.json' .* kept for the store's own metadata.json"):
        LocalStore(tmp_path).put("r", 0, "MetaData.json", "k", ONE)


@settings(max_examples=80)
@given(name=st.lists(st.sampled_from(["/", "\\", "..", ".", "a", "\0", "~", "C:", " "]), max_size=6).map("".join))
def test_no_name_writes_outside_the_folder(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder, "store"))
        for names in ((name, "l", "k"), ("r", name, "k"), ("r", "l", name)):
            try:
                path = store.put(names[0], 0, *names[1:], ONE)
            except StoreKeyError:
                continue
            assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(store.base_path / "runs"))
        with suppress(StoreKeyError):
            store.put_tensor(name, ONE)
        assert set(os.listdir(folder)) <= {"store"}


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/abs", "a//b", "", "a/.b", 3])
def test_paths_of_free_tensors_stay_inside(tmp_path: Path, key: str) -> None:
    store = LocalStore(tmp_path / "store")
    for call in (store.get_tensor, lambda name: store.put_tensor(name, ONE)):
        with pytest.raises(StoreKeyError, match=re.escape(repr(key))):
            call(key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["runs", "runs/r", "runs/r/batch_0", "runs/r/batch_0/l"])
def test_links_that_lead_outside_are_refused(tmp_path: Path, link: str) -> None:
    store, outside = LocalStore(tmp_path / "store"), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    place = store.base_path / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    for call in (
        lambda: store.put("r", 0, "l", "k", ONE),
        lambda: store.get("r", 0, "l", "k"),
        lambda: store.list_keys("r", 0, "l"),
        lambda: store.put_detector_metadata("r", 0, {}, {"l": {"k": ONE}}),
    ):
        with pytest.raises(StoreKeyError, match=r"outside the store's folder .*Allowed: paths, and links, that"):
            call()
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_files_that_link_outside_are_not_read(tmp_path: Path) -> None:
    store, other = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "other")
    secret = other.put("r", 0, "l", "k", ONE)
    place = store.put("r", 0, "l", "k", ONE)
    place.unlink()
    place.symlink_to(secret)
    with pytest.raises(StoreKeyError, match="outside the store's folder"):
        store.get("r", 0, "l", "k")
    (store.base_path / "runs" / "r" / "meta.json").symlink_to(secret)
    with pytest.raises(StoreKeyError, match="outside the store's folder"):
        store.get_run_metadata("r")
    (store.base_path / "runs" / "r" / "batch_0" / "metadata.json").symlink_to(secret)
    with pytest.raises(StoreKeyError, match="outside the store's folder"):
        store.get_detector_metadata("r", 0)


def test_links_that_stay_inside_are_followed_but_not_deleted_through(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("r", 0, "l", "k", ONE)
    (store.base_path / "runs" / "latest").symlink_to("r")
    assert store.list_runs() == ["latest", "r"]
    assert store.get("latest", 0, "l", "k") == 1
    store.delete_run("latest")
    assert store.list_runs() == ["r"]


def test_a_store_behind_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    LocalStore(tmp_path / "link").put("r", 0, "l", "k", ONE)
    assert LocalStore(tmp_path / "real").get("r", 0, "l", "k") == 1
