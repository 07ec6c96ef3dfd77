"""The benchmarks run from end to end, on a tiny model; what they measure is no test's business."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import soak
from benchmarks.copies import counted
from benchmarks.report import Section, Target, as_json, markdown, put_into
from benchmarks.soak import Held, grown
from benchmarks.timing import Clock, Spent
from tests.counted import few_objects

BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"
ROOT = Path(__file__).parents[1]
SECTIONS = {
    "Training step",
    "Forward pass",
    "Generating",
    "Held when",
    "One activation",
    "Accuracy",
    "What a",
    "GPU",
    "Heads",
}


def test_everything_runs(tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text(f"before\n{BEGIN}\nnumbers of last year\n{END}\nafter\n")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--quick", "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--out", str(out), "--docs", str(page)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["versions"]["torch"] == torch.__version__
    titles = [section["title"] for section in found["sections"]]
    assert {wanted for wanted in SECTIONS for title in titles if title.startswith(wanted)} == SECTIONS
    for section in found["sections"]:
        for target in section["targets"]:
            assert isinstance(target["value"], (int, float)) or target["note"], target
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "last year" not in text
    assert done.stdout.strip() in text and "ActivationStatistics, read at the end" in text
    exact = [target for section in found["sections"] for target in section["targets"] if target["limit"] == 0]
    assert len(exact) >= 2 and all(target["value"] == 0 for target in exact)  # no handles, no activation kept


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("a", 0.02, 0.03, "share"), "met"),
        (Target("a", 0.035, 0.03, "share"), "missed by 0.5 %"),
        (Target("a", 1.2, None, "ratio"), "no target"),
        (Target("a", None, 1.0, note="no CUDA device"), "not run: no CUDA device"),
        (Target("a", 4.0, 2.0, "ms"), "missed by 2 ms"),
    ],
)
def test_verdicts(target: Target, verdict: str) -> None:
    assert target.verdict == verdict
    assert verdict in markdown("heading", [Section("s", targets=[target])])
    assert json.loads(json.dumps(as_json({}, [Section("s", targets=[target])])))["sections"][0]["title"] == "s"


def test_a_page_without_the_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"page\.md needs the lines"):
        put_into(page, "text")


def test_copies_to_the_host_are_counted_once() -> None:
    x = torch.arange(6.0).view(2, 3)

    def one() -> None:
        host = x.square().cpu()
        assert sum(row.sum().item() for row in host) == host.sum().item() == float(host.sum())

    assert counted(one) == (0, 1)
    assert counted(lambda: [row.sum().item() for row in x]) == (0, 2)
    assert counted(lambda: bool(x.sum() > 0)) == (0, 1)
    assert counted(lambda: (torch.zeros(3) + 1).tolist()) == (0, 0)


def test_a_clock_counts_nested_calls_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(Spent, "now", lambda: Spent(float(next(ticks)), 0.0))
    clock = Clock()
    inner = clock(lambda: None)
    clock(lambda: [inner() for _ in range(3)])()
    assert clock.take() == (1.0, 0.0)  # two looks at the time, not eight
    inner()
    assert clock.take() == (1.0, 0.0) and clock.take() == (0.0, 0.0)


def test_a_soak_fails_where_something_grows() -> None:
    held = [Held(100, 5, 6, 1, 400.0), Held(100, 5, 6, 1, 410.0)]
    assert grown(held) == []
    more = [held[0], Held(101, 5, 7, 2, 421.0)]
    assert grown(more) == ["tensors", "descriptors", "threads", "resident_mb"]


def test_what_a_process_holds_is_counted() -> None:
    with few_objects(), open(os.devnull) as file:
        before = Held.now()
        kept = [torch.zeros(1000) for _ in range(3)]
        with open(os.devnull):
            after = Held.now()
    assert (after.tensors - before.tensors, after.tensor_kb - before.tensor_kb) == (3, 12)
    assert after.descriptors - before.descriptors == 1 and len(kept) == 3 and file.closed


def test_a_short_soak_runs_to_its_end(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "lightning.pytorch")  # and back after the test, which sets it
    assert soak.main(["--scale", "0.001", "--only", "fits"]) in (0, 1)  # memory settles in more runs than these
    assert "10 fits" in capsys.readouterr().out
