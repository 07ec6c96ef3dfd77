"""A store that fails in a Trainer run, and writers that are killed at any moment: what was written stays readable."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import Detector, HookCallback, HookError, Schedule, SteeringVector
from mi_crow_lightning.language_model.line_file import LineFile
from mi_crow_lightning.store import LocalStore
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, module_of, run, told
from tests.models import handles, trainer

pytestmark = pytest.mark.faults


class Keeps(Detector):
    """Puts each activation into the store."""

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.store.put(ctx.stage.value, ctx.batch_idx, ctx.layer, "activations", x)


def keeping(folder: Path, **options: Any) -> HookCallback:
    return HookCallback(detectors=Keeps("model.0", store=LocalStore(folder), schedule=Schedule(), **options))


@pytest.mark.documents("reliability/the-stores-folder-cannot-be-made-or-is-read-only")
def test_a_store_whose_folder_cannot_be_made_disables_the_detector(tmp_path: Path) -> None:
    """A file where the folder should be: unlike a read-only folder it stops the superuser, too."""
    (tmp_path / "runs").touch()
    bare, module = module_of(), module_of()
    torch.manual_seed(7)
    runner = fit(bare, data_of())
    expected = fingerprint(bare, runner)
    torch.manual_seed(7)
    with told(r"(NotADirectoryError|FileExistsError)[\s\S]*runs", RuntimeWarning) as texts:
        runner = fit(module, data_of(), keeping(tmp_path))
    assert "disabled from now on" in texts[0]
    assert_bit_equal(fingerprint(module, runner), expected)
    with pytest.raises(HookError, match="runs"):
        run("predict", trainer(keeping(tmp_path, on_error="raise")), module, data_of())
    assert handles(module) == {}


@pytest.mark.documents("reliability/the-stores-folder-cannot-be-made-or-is-read-only")
@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_disables_the_detector(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o500)
    with told("PermissionError", RuntimeWarning):
        fit(module_of(), data_of(), keeping(folder))
    assert list(folder.iterdir()) == []


@contextmanager
def small_files() -> Iterator[None]:
    """No file may be larger than 100 bytes, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class FillsUp(LocalStore):
    """From the third batch on its disk is full."""

    def put(self, run_id: str, batch_index: int, layer: str, key: str, tensor: Tensor) -> Path:
        with small_files() if batch_index >= 2 else nullcontext():
            return super().put(run_id, batch_index, layer, key, tensor)


@pytest.mark.documents("reliability/the-disk-fills-up-while-a-detector-writes-to-a-store")
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_disk_that_fills_up_during_a_run_keeps_what_was_written(tmp_path: Path, stage: str) -> None:
    store, module = FillsUp(tmp_path), module_of()
    watch = HookCallback(detectors=Keeps("model.0", store=store, schedule=Schedule(stages=["train", "predict"])))
    with told(r"batch 2.*File too large[\s\S]*disabled from now on", RuntimeWarning):
        run(stage, trainer(watch), module, data_of())
    assert [batch for batch, *_ in store.iterate("train" if stage == "fit" else stage)] == [0, 1]
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == [] and handles(module) == {}


WRITERS = {
    "vector": """
        import sys, torch
        from mi_crow_lightning import SteeringVector
        for step in range(10**9):
            vector = SteeringVector({"h.0": torch.full((50_000,), step + 1.0), "h.1": torch.full((9,), step + 1.0)})
            vector.save(sys.argv[1] + "/joy.safetensors")
            print(step, flush=True)
    """,
    "lines": """
        import sys
        from pathlib import Path
        from mi_crow_lightning.language_model.line_file import LineFile
        file = LineFile(Path(sys.argv[1], "a.jsonl"), "x")
        for step in range(10**9):
            file.append([f'{{"step": {step}, "row": {row}, "text": "{"ü" * 5000}"}}' for row in range(4)])
            print(step, flush=True)
    """,
}


def killed(name: str, folder: Path, delay: float) -> int:
    """Run a writer and kill it at some moment; gives the last step that it said it had written."""
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITERS[name]), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer, writer.stdout:
        steps = [int(writer.stdout.readline()) for _ in range(3)]
        time.sleep(delay)
        writer.kill()
        steps += map(int, writer.stdout.read().split())
    assert writer.returncode == -signal.SIGKILL
    return steps[-1]


MOMENTS = [random.Random(seed).uniform(0, 0.02) for seed in range(2)]


@pytest.mark.documents("reliability/the-process-is-killed-while-steeringvector-save-writes")
@pytest.mark.parametrize("delay", MOMENTS)
def test_a_vector_whose_writer_is_killed_is_the_old_one_or_the_new_one(tmp_path: Path, delay: float) -> None:
    last = killed("vector", tmp_path, delay)
    read = SteeringVector.load(tmp_path / "joy.safetensors")
    (value,) = {float(one) for layer in ("h.0", "h.1") for one in read[layer].unique()}
    assert value in (last + 1, last + 2)


@pytest.mark.documents("reliability/the-process-is-killed-while-predictionwriter-writes")
@pytest.mark.parametrize("delay", MOMENTS)
def test_lines_whose_writer_is_killed_are_whole(tmp_path: Path, delay: float) -> None:
    last = killed("lines", tmp_path, delay)
    path = tmp_path / "a.jsonl"
    unfinished = path.stat().st_size - int((tmp_path / "a.jsonl.unfinished").read_bytes())
    whole = path.read_bytes().rpartition(b"\n")[0]
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert [(row["step"], row["row"]) for row in rows][: 4 * (last + 1)] == [
        (step, row) for step in range(last + 1) for row in range(4)
    ]
    with told(f"ended in half a batch: its last {unfinished} bytes", times=1 if unfinished else 0):
        file = LineFile(path, "a")
    file.append(['{"step": -1}'])
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][-1] == -1


@pytest.mark.documents("reliability/the-disk-is-full-while-steeringvector-save-writes")
def test_a_vector_that_does_not_fit_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    old = SteeringVector({"h.0": torch.ones(4)})
    old.save(path)
    with small_files(), pytest.raises(OSError, match="File too large"):
        SteeringVector({"h.0": torch.ones(10_000)}).save(path)
    assert SteeringVector.load(path) == old and list(tmp_path.iterdir()) == [path]
