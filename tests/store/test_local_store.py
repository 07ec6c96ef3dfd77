"""LocalStore: what is put comes back, in order, and what is not there is named."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning.errors import StoreKeyError
from mi_crow_lightning.store import LocalStore, Store

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]

DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9\xb9\xb2\xb3]) *(\..*)?", re.IGNORECASE | re.DOTALL
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=40).filter(
    lambda name: (
        name.strip()
        and not name.startswith(".")
        and not name.endswith((" ", "."))
        and name.casefold() != "metadata.json"
        and not DEVICES.fullmatch(name)
    )
)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bits(one) == bits(other)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, mi_crow_lightning.store as s; assert 'torch' not in sys.modules; assert s.LocalStore"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_is_a_store_and_makes_its_folder_only_when_it_writes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "a" / "b")
    assert isinstance(store, Store)
    assert store.list_runs() == []
    with pytest.raises(FileNotFoundError, match=r"No run 'x' in .*there is no run at all"):
        store.list_run_batches("x")
    assert list(tmp_path.iterdir()) == []


def test_a_base_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; a store needs a folder"):
        LocalStore(tmp_path / "file")


def test_a_relative_store_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore()
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert store.put("r", 0, "l", "k", torch.ones(1)).is_relative_to(tmp_path / "runs")


@settings(max_examples=40)
@given(run=NAMES, layer=NAMES, key=NAMES, batch=st.integers(0, 2**63 - 1))
def test_names_come_back_as_they_were_given(run: str, layer: str, key: str, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        path = store.put(run, batch, layer, key, torch.ones(2))
        assert path.parts[-4:] == (run, f"batch_{batch}", layer, f"{key}.safetensors")
        assert (store.list_runs(), store.list_run_batches(run)) == ([run], [batch])
        assert (store.list_layers(run, batch), store.list_keys(run, batch, layer)) == ([layer], [key])
        assert same(store.get(run, batch, layer, key), torch.ones(2))


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=4),
    seed=st.integers(0, 999),
    flip=st.booleans(),
)
def test_tensors_come_back_bit_by_bit(dtype: torch.dtype, shape: list[int], seed: int, flip: bool) -> None:
    size = torch.tensor([], dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, size), dtype=torch.uint8)
    tensor = raw.view(dtype).squeeze(-1).mT if flip and len(shape) > 1 else raw.view(dtype).squeeze(-1)
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        store.put("r", seed, "h.0", "k", tensor)
        assert same(store.get("r", seed, "h.0", "k"), tensor)


def test_odd_tensors_can_be_put_and_are_left_alone(store: LocalStore) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    with torch.inference_mode():
        inference = torch.arange(3.0)
    odd = {
        "view": base[:, 1:3],
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "graph": torch.ones(2, requires_grad=True) * 2,
        "inference": inference,
        "conj": torch.tensor([1 + 2j]).conj(),
        "neg": torch.tensor([1 + 2j]).conj().imag,
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
    }
    for key, tensor in odd.items():
        before = (tensor.requires_grad, tensor.is_contiguous(), tensor.data_ptr(), tensor.is_conj())
        store.put("r", 0, "l", key, tensor)
        assert (tensor.requires_grad, tensor.is_contiguous(), tensor.data_ptr(), tensor.is_conj()) == before
        back = store.get("r", 0, "l", key)
        assert same(back, tensor), key
        assert not back.requires_grad


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        ([1.0], TypeError, "must be a torch.Tensor, got list"),
        (torch.eye(2).to_sparse(), ValueError, "cannot be stored: layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), ValueError, "device meta.*dense tensors that hold data"),
        (torch.ones(1, dtype=torch.complex128), ValueError, "safetensors cannot hold.*complex128"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    store: LocalStore, tensor: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store.put("r", 0, "l", "k", tensor)
    assert store.list_runs() == []


def test_batches_are_listed_and_iterated_in_numeric_order(store: LocalStore) -> None:
    for batch in (10, 9, 100):
        for layer in ("h.1", "h.0"):
            store.put("r", batch, layer, "k", torch.tensor(batch))
    store.put("r", 9, "h.0", "j", torch.tensor(0))
    assert store.list_run_batches("r") == [9, 10, 100]
    seen = [(*where, int(tensor)) for *where, tensor in store.iterate("r")]
    assert seen[:4] == [(9, "h.0", "j", 0), (9, "h.0", "k", 9), (9, "h.1", "k", 9), (10, "h.0", "k", 10)]
    assert [one[:3] for one in store.iterate("r", layer="h.1", key="k")] == [
        (batch, "h.1", "k") for batch in (9, 10, 100)
    ]
    assert [one[0] for one in store.iterate("r", key="j")] == [9]


def test_what_is_missing_is_named_with_what_is_there(store: LocalStore) -> None:
    store.put("run_a", 3, "h.0", "mean", torch.ones(1))
    with pytest.raises(FileNotFoundError, match=r"No run 'run_b'.*there are: 'run_a'.*Closest: 'run_a'"):
        store.get("run_b", 3, "h.0", "mean")
    with pytest.raises(FileNotFoundError, match=r"No batch 4 .*there are: 3\."):
        store.get("run_a", 4, "h.0", "mean")
    with pytest.raises(FileNotFoundError, match=r"No layer 'h.1'.*there are: 'h.0'"):
        store.get_detector_metadata_by_layer_by_key("run_a", 3, "h.1", "mean")
    with pytest.raises(FileNotFoundError, match=r"No key 'meen'.*there are: 'mean'"):
        store.get("run_a", 3, "h.0", "meen")
    with pytest.raises(FileNotFoundError, match=r"No layer 'h.7'.*there are: 'h.0'"):
        store.iterate("run_a", layer="h.7")
    with pytest.raises(FileNotFoundError, match=r"No key 'x'.*there are: 'mean'"):
        store.iterate("run_a", key="x")
    for call in (store.get_run_metadata, store.iter_run_batches, store.get_run_detector_metadata):
        with pytest.raises(FileNotFoundError, match="No run 'nope'"):
            call("nope")


def test_whole_batches_come_back_as_list_or_dict(store: LocalStore) -> None:
    shared = torch.arange(4.0)
    batches = [[], [shared, shared[1:]], {"item_0": shared, "a/b": shared.reshape(2, 2)}, {}, [shared] * 12]
    for index, batch in enumerate(batches):
        assert store.put_run_batch("r", index, batch) == f"runs/r/batch_{index:06d}.safetensors"
    for batch, back in zip(batches, store.iter_run_batches("r"), strict=True):
        assert type(back) is type(batch)
        pairs = zip(back, batch, strict=True) if isinstance(batch, list) else []
        assert all(same(one, other) for one, other in pairs)
        if isinstance(batch, dict):
            assert set(back) == set(batch)
            assert all(same(back[key], batch[key]) for key in batch)


def test_batches_as_mi_crow_wrote_them_are_read(store: LocalStore) -> None:
    from safetensors.torch import save_file

    folder = store.base_path / "runs" / "old"
    folder.mkdir(parents=True)
    save_file({"item_1": torch.ones(1), "item_0": torch.zeros(1)}, folder / "batch_000000.safetensors")
    save_file({"_empty_list": torch.tensor([])}, folder / "batch_000001.safetensors")
    save_file({"x": torch.ones(1)}, folder / "batch_000002.safetensors")
    assert list(store.iter_run_batches("old")) == [[0.0, 1.0], [], {"x": 1.0}]


def test_whole_batches_that_cannot_be_stored_are_refused(store: LocalStore) -> None:
    with pytest.raises(TypeError, match="list or a dict of tensors, got tuple"):
        store.put_run_batch("r", 0, (torch.ones(1),))
    with pytest.raises(TypeError, match="keys of a batch must be str, got 1"):
        store.put_run_batch("r", 0, {1: torch.ones(1)})
    with pytest.raises(StoreKeyError, match="'__metadata__' is kept by safetensors"):
        store.put_run_batch("r", 0, {"__metadata__": torch.ones(1)})


def test_a_batch_of_single_tensors_is_read_as_a_dict(store: LocalStore) -> None:
    store.put("r", 0, "h.0", "activations", torch.zeros(1))
    assert store.get_run_batch("r", 0) == {"activations": 0.0}
    store.put("r", 0, "h.1", "activations", torch.ones(1))
    assert store.get_run_batch("r", 0) == {"activations_h.0": 0.0, "activations_h.1": 1.0}
    store.put("r", 1, "c", "a_b", torch.ones(1))
    store.put("r", 1, "b_c", "a", torch.ones(1))
    with pytest.raises(ValueError, match="two tensors of one name"):
        store.get_run_batch("r", 1)


def test_free_tensors_lie_beside_the_runs(store: LocalStore) -> None:
    path = store.put_tensor("vectors/joy", torch.ones(2))
    assert path == store.base_path / "vectors" / "joy"
    assert same(store.get_tensor("vectors/joy"), torch.ones(2))
    assert store.list_runs() == []
    with pytest.raises(FileNotFoundError, match=r"No tensor 'jay'.*there are: 'joy'"):
        store.get_tensor("vectors/jay")
    for key in ("runs", "runs/r/meta.json"):
        with pytest.raises(StoreKeyError, match=f"'{key}' lies among the runs"):
            store.put_tensor(key, torch.ones(1))
    store.put("r", 0, "l", "k", torch.zeros(1))
    assert same(store.get_tensor("runs/r/batch_0/l/k.safetensors"), torch.zeros(1))
