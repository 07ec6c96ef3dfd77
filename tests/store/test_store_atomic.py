"""Writers that are killed, or that fail, leave what was there."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mi_crow_lightning.store import LocalStore


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


LOOP = """
import sys, torch
from mi_crow_lightning.store import LocalStore
store = LocalStore(sys.argv[1])
for step in range(10**9):
    tensor = torch.full((250_000,), float(step))
    store.put("r", 0, "l", "k", tensor)
    store.put("r", step, "l", "k", tensor)
    store.put_run_metadata("r", {"step": step, "pad": "x" * 10_000})
    print(step, flush=True)
"""


@pytest.mark.documents("reliability/the-process-is-killed-during-a-store-write")
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011])
def test_a_writer_killed_in_the_middle_leaves_whole_files(tmp_path: Path, delay: float) -> None:
    import time

    writer = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    last = [int(writer.stdout.readline()) for _ in range(8)][-1]
    time.sleep(delay)
    writer.kill()
    last = max([last, *map(int, writer.stdout.read().split())])
    writer.wait()
    writer.stdout.close()

    store = LocalStore(tmp_path)
    batches = store.list_run_batches("r")
    assert batches[: last + 1] == list(range(last + 1))
    for batch, layer, key, tensor in store.iterate("r"):
        assert (layer, key, tensor.shape) == ("l", "k", (250_000,))
        assert batch == 0 or bool((tensor == batch).all())
    assert store.get("r", 0, "l", "k").unique().numel() == 1
    assert store.get_run_metadata("r")["step"] >= last


KILLED_BEFORE_MOVE = """
import os, signal, sys, torch
from mi_crow_lightning.store import LocalStore
store = LocalStore(sys.argv[1])
store.put("r", 0, "l", "old", torch.zeros(3))
os.replace = lambda *paths: print("temporary", flush=True) or os._exit(0)
store.put("{run}", {batch}, "{layer}", "{key}", torch.ones(3))
"""


@pytest.mark.documents("reliability/the-process-is-killed-during-a-store-write")
@pytest.mark.parametrize("where", [("r", 0, "l", "old"), ("r", 0, "l2", "k"), ("r", 7, "l", "k"), ("r2", 0, "l", "k")])
def test_a_temporary_file_left_behind_is_not_listed(tmp_path: Path, where: tuple[str, int, str, str]) -> None:
    names = dict(zip(("run", "batch", "layer", "key"), where, strict=True))
    assert run(KILLED_BEFORE_MOVE.format(**names), tmp_path).stdout == "temporary\n"
    assert len(temporary_files(tmp_path)) == 1
    store = LocalStore(tmp_path)
    assert temporary_files(tmp_path) == []
    assert (store.list_runs(), store.list_run_batches("r"), store.list_layers("r", 0)) == (["r"], [0], ["l"])
    assert [(*one[:3], one[3].tolist()) for one in store.iterate("r")] == [(0, "l", "old", [0.0] * 3)]
    assert store.get_run_batch("r", 0)["old"].tolist() == [0.0] * 3


FULL_DISK = """
import resource, signal, sys, torch
from mi_crow_lightning.store import LocalStore
store = LocalStore(sys.argv[1])
small = torch.zeros(3)
store.put("r", 0, "l", "k", small)
store.put_run_batch("r", 1, [small])
store.put_run_metadata("r", {"a": 1})
store.put_detector_metadata("r", 2, {"a": 1}, {"l": {"k": small}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
large = torch.ones(10_000)
for write in (
    lambda: store.put("r", 0, "l", "k", large),
    lambda: store.put_run_batch("r", 1, [large]),
    lambda: store.put_run_metadata("r", {"a": "x" * 10_000}),
    lambda: store.put_detector_metadata("r", 2, {"a": 2}, {"l": {"k": large}}),
    lambda: store.put_run_detector_metadata("r", {}, {"l": {"k": large}}),
):
    try:
        write()
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.documents("reliability/the-disk-is-full-for-each-kind-of-store-write")
def test_a_write_that_fails_leaves_the_earlier_content(tmp_path: Path) -> None:
    assert run(FULL_DISK, tmp_path).stdout.splitlines() == ["File too large"] * 5
    store = LocalStore(tmp_path)
    assert temporary_files(tmp_path) == []
    assert store.get("r", 0, "l", "k").tolist() == [0.0] * 3
    assert store.get_run_batch("r", 1)[0].tolist() == [0.0] * 3
    assert store.get_run_metadata("r") == {"a": 1}
    metadata, tensors = store.get_detector_metadata("r", 2)
    assert (metadata, tensors["l"]["k"].tolist()) == ({"a": 1}, [0.0] * 3)
    assert store.get_run_detector_metadata("r") == []


@pytest.mark.documents("reliability/a-stored-file-is-damaged")
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    path = store.put("r", 0, "l", "k", torch.ones(3))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(OSError, match=r"k\.safetensors' is not a readable safetensors file"):
        store.get("r", 0, "l", "k")
    (
        store.put_run_batch("r", 1, {"a": torch.ones(1)}),
        (tmp_path / "runs/r/batch_000001.safetensors").rename(path),
    )
    with pytest.raises(OSError, match=r"holds \['a'\], not a single tensor named 'tensor'"):
        store.get("r", 0, "l", "k")


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = LocalStore(tmp_path).put("r", 0, "l", "k", torch.ones(1))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_tensor_that_was_read_outlives_its_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("r", 0, "l", "k", torch.ones(3))
    kept = store.get("r", 0, "l", "k")
    store.put("r", 0, "l", "k", torch.zeros(3))
    kept += 1
    assert kept.tolist() == [2.0] * 3
    assert store.get("r", 0, "l", "k").tolist() == [0.0] * 3
    store.delete_run("r")
    assert kept.tolist() == [2.0] * 3
