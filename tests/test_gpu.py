"""`make gpu`: its parts end in time, what is missing is said, and results go into the page.

All of it runs in `make gpu ARGS="--device cpu"`, which `.ci/run` calls.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_rows
from benchmarks.__main__ import sections
from benchmarks.cases import cases, compile_case
from benchmarks.report import Section, Target, as_json, from_json

MACHINE = {"date": "2026-11-28", "device": "a card", "threads": 1, "load": 0.0, "python": "3.11", "versions": {}}


def test_every_section_that_a_gpu_changes_is_measured() -> None:
    everything = [name for name, _ in sections(torch.device("cpu"), 2, True)]
    *chosen, last = [name for name, _ in gpu_rows.chosen(torch.device("cpu"), 2, True)]
    assert last == "kernels"  # that they were used by the rows before
    assert sorted([*chosen, *gpu_rows.HOST]) == sorted(everything)
    assert set(chosen[: len(gpu_rows.FIRST)]) == set(gpu_rows.FIRST) and chosen[-len(gpu_rows.LAST) :] == list(
        gpu_rows.LAST
    )


def test_the_models_of_a_gpu_can_be_made() -> None:
    """Without one, on no device at all."""
    cuda, meta = torch.device("cuda"), torch.device("meta")
    assert [case.name for case in cases(cuda, quick=False)] == ["Llama of 1B parameters", "GPT-2"]
    assert "4 blocks" in compile_case(cuda).name
    for case in (*cases(meta, quick=False), compile_case(meta)):
        model = case.make()
        assert case.make() is model and case.dtype is torch.bfloat16
        assert {parameter.device for parameter in model.parameters()} == {meta}
    assert 1.0e9 < sum(parameter.numel() for parameter in cases(meta, quick=False)[0].make().parameters()) < 1.2e9


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    start = time.monotonic()
    assert gpu._run([sys.executable, "-c", code], 1.0, {}) is None
    assert time.monotonic() - start < 20
    time.sleep(3)
    assert not mark.exists()


def test_the_end_bounds_every_part() -> None:
    deadline = gpu.Deadline(1.0, time.monotonic() - 30)
    assert deadline.left(5) == 5 and 20 < deadline.left() < 30
    assert gpu.Deadline(0.1).left(5) == 0


def test_rows_that_were_not_measured_are_left_out_aloud(capfd: pytest.CaptureFixture[str]) -> None:
    _, rows, failed = gpu.measured_rows("cpu", 2, True, "", gpu.Deadline(0.0))
    assert failed and rows[0].targets[0].verdict == "not run: left out, the time was over"
    assert "left out" in capfd.readouterr().err


def test_rows_after_the_time_is_over_are_left_out_and_the_others_stay(tmp_path: Path) -> None:
    into = tmp_path / "rows.jsonl"
    threads = torch.get_num_threads()
    gpu_rows.main(["--device", "cpu", "--rounds", "1", "--into", str(into), "--seconds", "0", "--only", "one tensor"])
    assert torch.get_num_threads() == threads
    first, row = map(json.loads, gpu._whole_lines(into))
    assert first["names"] == ["one tensor"] and first["machine"]["versions"]["torch"] == version("torch")
    assert row["section"]["targets"][0]["note"] == "left out, the time was over"
    into.write_text(into.read_text() + '{"name": "cut o')
    assert len(gpu._whole_lines(into)) == 2


@pytest.mark.parametrize(
    ("code", "seconds", "verdict"),
    [
        ("def test_one(): pass", 40, "met"),
        ("def test_one(): pass\ndef test_other(): assert False", 40, "missed by 1"),
        ("", 40, "not run: pytest ended with 5 after 0 tests"),
        ("import there_is_no_such_module", 40, "missed by 1"),
        ("import time\ndef test_one(): time.sleep(60)", 2, "not run: they did not end within 2 s"),
    ],
    ids=["passes", "fails", "none", "cannot be imported", "takes long"],
)
def test_tests_are_counted(tmp_path: Path, code: str, seconds: float, verdict: str) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(code)
    target = gpu.tested(gpu.Suite("some", (str(file),), seconds), "cpu", gpu.Deadline(1.0))
    assert target.verdict == verdict
    assert target.value != 0 or "1 passed, 0 skipped" in target.note


def test_without_what_tests_need_they_count_as_not_passed() -> None:
    target = gpu.tested(gpu.Suite("some", ("tests",), 8, needs="no_such_module"), "cpu", gpu.Deadline(1.0))
    assert target.value is None and "no_such_module is not installed" in target.verdict


def test_results_of_another_machine_go_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [Section("Rows", "a note", [{"": "a row", "ms": "3"}], [Target("a row", 1.01, 1.02, "ratio")])]
    stored, page = tmp_path / "gpu.json", tmp_path / "page.md"
    stored.write_text(json.dumps(as_json(MACHINE, found)))
    assert from_json(json.loads(stored.read_text())) == (MACHINE, found)
    page.write_text("before\n<!-- begin: make gpu -->\nnothing\n<!-- end: make gpu -->\nafter\n")
    assert gpu.main(["--from", str(stored), "--docs", str(page)]) == 0
    text = page.read_text()
    assert "on a card" in text and "| a row" in text and "nothing" not in text and text.endswith("after\n")
    assert capsys.readouterr().out.strip() in text


def test_the_page_has_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(gpu.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    gpu.put_into(page, "numbers", by="make gpu")
    assert "Not run on a GPU yet" not in page.read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(os.listdir())
    assert gpu.main([]) == 2
    assert "no CUDA device" in (said := capsys.readouterr().err) and "--device cpu" in said
    assert set(os.listdir()) == before
