"""Stores whose writers are killed at any moment, and stores that several processes use at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mi_crow_lightning.store import LocalStore
from tests.store.program_writers import SIZE

ROOT = Path(__file__).parents[2]


class Writers:
    """Processes that write to one store, see `program_writers`."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self.program = program
        self.running: list[int] = []

    def start(self, number: int) -> int:
        """Start one; returns its ID when it has written once."""
        assert self.program.stdin is not None and self.program.stdout is not None
        self.program.stdin.write(f"{number}\n")
        self.program.stdin.flush()
        self.running.append(int(self.program.stdout.readline()))
        return self.running[-1]

    def kill(self, process: int) -> None:
        self.running.remove(process)
        os.kill(process, signal.SIGKILL)
        while status(process) in "RSD":  # until nothing more is written
            time.sleep(0.001)


def status(process: int) -> str:
    """One letter: R, S, D for a process that runs or waits, Z for one that is over."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


@contextmanager
def writers(folder: Path) -> Iterator[Writers]:
    command = [sys.executable, "-m", "tests.store.program_writers", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        started = Writers(program)
        try:
            yield started
        finally:
            for process in started.running:
                os.kill(process, signal.SIGKILL)
            program.kill()


def assert_whole(folder: Path) -> None:
    """Each file is of one write, and no temporary file is there."""
    store = LocalStore(folder)
    assert [path for path in folder.rglob(".*") if path.is_file()] == []
    for batch in store.list_run_batches("r"):
        tensor = store.get("r", batch, "l", "k")
        assert tensor.shape == (SIZE,) and int(tensor[0]) % 7 == batch and tensor.unique().numel() == 1
    for batch in store.list_run_batches("whole"):
        both = store.get_run_batch("whole", batch)
        assert torch.equal(both["a"] + 1, both["b"]) and int(both["a"][0]) % 5 == batch
    assert len(store.get_run_metadata("r")["pad"]) == 10_000
    metadata, tensors = store.get_detector_metadata("d", 0)
    # The tensor is written first: a process killed between the two leaves the metadata of the write before.
    assert int(tensors["l"]["k"][0]) >= metadata["number"]


def kill_writers(folder: Path, kills: int, seed: int) -> int:
    """Kill writers at random times; returns how many left a temporary file."""
    rng, left = random.Random(seed), 0
    with writers(folder) as started:
        for kill in range(kills):
            process = started.start(1000 * kill)
            time.sleep(rng.random() * 0.03)
            started.kill(process)
            left += any(path.is_file() for path in folder.rglob(".*"))
            assert_whole(folder)
    return left


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of processes in /proc")


@needs_proc
@pytest.mark.documents(
    "reliability/the-process-is-killed-during-a-store-write",
    "reliability/killed-processes-left-temporary-files-in-a-store",
)
def test_kills_at_random_times_leave_whole_files(tmp_path: Path) -> None:
    kill_writers(tmp_path, kills=6, seed=0)


@needs_proc
@pytest.mark.documents(
    "reliability/several-processes-write-to-one-store-the-same-files-too",
    "reliability/a-process-reads-a-store-while-another-one-writes",
)
def test_two_writers_of_the_same_files_and_a_reader_that_opens_the_store_again_and_again(tmp_path: Path) -> None:
    with writers(tmp_path) as started:
        processes, seen = [started.start(0), started.start(10**6)], set()
        until = time.monotonic() + 20
        while len(seen) < 12 and time.monotonic() < until:
            store = LocalStore(tmp_path)  # removes leftovers: the writers' files are none
            tensor = store.get("r", 0, "l", "k")
            both = store.get_run_batch("whole", 0)
            assert tensor.unique().numel() == 1 and torch.equal(both["a"] + 1, both["b"])
            assert len(store.get_run_metadata("r")["pad"]) == 10_000
            seen.add(int(tensor[0]))
        assert all(status(process) in "RSD" for process in processes), "neither was disturbed"
        assert len({number < 10**6 for number in seen}) == 2 and len(seen) == 12


HOLDS = """
import os, sys, torch
from mi_crow_lightning.store import LocalStore
move = os.replace
def wait(*paths):
    print("held", flush=True)
    sys.stdin.readline()
    move(*paths)
os.replace = wait
LocalStore(sys.argv[1]).put("r", 0, "l", "k", torch.ones(3))
"""


@pytest.mark.documents("reliability/killed-processes-left-temporary-files-in-a-store")
def test_the_temporary_file_of_a_running_writer_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        stale = tmp_path / ".tmp" / ".tmp-0123456789abcdef"
        stale.write_bytes(b"half")
        LocalStore(tmp_path)
        assert not stale.exists() and len(list((tmp_path / ".tmp").iterdir())) == 1
        process.communicate("go on\n")
    assert process.returncode == 0
    assert LocalStore(tmp_path).get("r", 0, "l", "k").tolist() == [1.0] * 3
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.mark.documents("reliability/killed-processes-left-temporary-files-in-a-store")
def test_a_file_that_is_taken_for_a_leftover_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is opened between the making of a temporary file and its lock removes it."""
    import fcntl

    lock, removed = fcntl.flock, []

    def late(file: object, operation: int) -> None:
        if operation == fcntl.LOCK_EX and len(removed) < 2:
            removed.extend((tmp_path / ".tmp").iterdir())
            LocalStore(tmp_path)
        lock(file, operation)  # type: ignore[arg-type]

    store = LocalStore(tmp_path)
    monkeypatch.setattr(fcntl, "flock", late)
    store.put("r", 0, "l", "k", torch.ones(3))
    assert len(removed) == 2 and store.get("r", 0, "l", "k").tolist() == [1.0] * 3
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.mark.documents("reliability/a-stores-folder-of-temporary-files-is-a-link-or-holds-other-files")
def test_a_strangers_store_removes_nothing_elsewhere(tmp_path: Path) -> None:
    mine, store = tmp_path / "mine", tmp_path / "store"
    mine.mkdir()
    store.mkdir()
    (mine / ".tmp-0123456789abcdef").write_bytes(b"mine")
    (store / ".tmp").symlink_to(mine)
    LocalStore(store).put("r", 0, "l", "k", torch.ones(3))
    assert [path.read_bytes() for path in mine.iterdir()] == [b"mine"]
    (store / ".tmp").unlink()
    (store / ".tmp").mkdir()
    (store / ".tmp" / "notes.txt").write_bytes(b"mine")
    (store / ".tmp" / ".tmp-link").symlink_to(mine / ".tmp-0123456789abcdef")
    (store / ".tmp" / ".tmp-folder").mkdir()
    LocalStore(store)
    assert sorted(path.name for path in (store / ".tmp").iterdir()) == [".tmp-folder", ".tmp-link", "notes.txt"]
    assert [path.read_bytes() for path in mine.iterdir()] == [b"mine"]
