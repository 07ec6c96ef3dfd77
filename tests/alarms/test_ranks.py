"""Two processes: all stop together, at the step in which one of them fails, and its snapshot fails again alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mi_crow_lightning.__main__ import main
from tests.callback.runs import assert_bit_equal

ROOT = Path(__file__).parents[2]
MODEL = "tests.alarms.program_ranks:Marked"


def ranks(folder: Path) -> list[subprocess.Popen[str]]:
    """Start both at once, as a cluster does: Lightning would start the second when the first has imported all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "tests.alarms.program_ranks", str(folder)]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environments = [{**os.environ, **shared, "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [subprocess.Popen(command, cwd=ROOT, env=one, **streams) for one in environments]  # type: ignore[call-overload]


@pytest.mark.documents(
    "reliability/a-rank-gets-values-that-are-not-finite-with-a-nonfinite-alarm",
    "reliability/a-file-that-is-not-a-snapshot-is-replayed",
)
def test_all_ranks_stop_together_and_the_snapshot_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = ranks(tmp_path)
    try:
        for process in started:
            errors = process.communicate(timeout=200)[1]
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:  # one that waits for another that failed
            process.kill()
    seen = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for one in seen:
        assert one["fired"] == [["model.3", 3, 3, 1]] and one["steps"] == 4 and one["whole"]
    assert_bit_equal(dict(seen[0]["weights"]), dict(seen[1]["weights"]))
    (file,) = (tmp_path / "snapshot").iterdir()
    assert file.name == "NonFinite-train-step3-rank1.pt"
    capsys.readouterr()
    assert main(["replay", str(file), "--model", MODEL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] and found["layer"] == "model.3" and found["inputs_finite"]
    assert main(["replay", str(tmp_path / "0.pt"), "--model", MODEL]) == 2
    assert "is not a snapshot" in capsys.readouterr().err
