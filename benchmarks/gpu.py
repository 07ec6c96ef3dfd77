"""What a GPU changes, in one command: the tests on the device, then every row of the benchmarks, and a page of docs/.

make gpu                                                  # on a machine with a GPU, within nine minutes
PYTHONPATH=. python3 -m benchmarks.gpu                    # the same, with the packages that are there
make gpu ARGS="--device cpu"                              # every line of it on a CPU, in sizes that mean nothing
make gpu ARGS="--from gpu.json"                           # put what another machine measured into the page

The exit code is 0 if every test passed and no row failed, 1 if not, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.report import Section, Target, as_json, from_json, heading, markdown, put_into, section_from

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "performance.md"
VARIABLE = "MI_CROW_LIGHTNING_TEST_DEVICE"
NEEDED = ("numpy", "torch", "lightning", "torchmetrics", "transformers", "safetensors", "tensorboard")
RESERVE = 8  # seconds to write it down

NO_GPU = """\
There is no CUDA device that torch {version} can use, so nothing was run.
- On a machine with a GPU call `make gpu`, or, where torch, transformers and lightning are there already,
      PYTHONPATH=. python3 -m benchmarks.gpu
- Here, to see that every line of it runs:
      make gpu ARGS="--device cpu"
- With gpu.json of another machine, to put its results into the page:
      make gpu ARGS="--from gpu.json"
"""


@dataclass(frozen=True)
class Suite:
    """Tests that run in one process.

    Args:
        name: its name in the table.
        paths: what pytest is given.
        seconds: the most that they may take.
        needs: a module without which they are left out.
    """

    name: str
    paths: tuple[str, ...]
    seconds: float
    needs: str = "pytest"


SUITES = (
    Suite(  # without the conftest.py of all tests, which needs hypothesis
        "fits, steering, capture, compilation, statistics",
        ("tests/on_device", "--confcutdir=tests/on_device"),
        200,
    ),
    Suite(
        "the looks at an activation, and the kernels",
        ("tests/metrics/one_pass", "-k", "given_device or on_cuda"),
        120,
        needs="hypothesis",
    ),
)


@dataclass
class Deadline:
    """The end of all of it, and of its parts."""

    minutes: float
    _start: float = field(default_factory=time.monotonic)

    def left(self, most: float = float("inf")) -> float:
        """Return the seconds that a part may take."""
        return max(0.0, min(most, self.minutes * 60 - RESERVE - (time.monotonic() - self._start)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="a tiny model; the numbers mean nothing (always on a CPU)")
    parser.add_argument("--minutes", type=float, default=9.0, help="when it ends; what is not done by then is left out")
    parser.add_argument("--rounds", type=int, help="turns of each variant (default: 15; 2 with --quick)")
    parser.add_argument("--only", default="", help="only rows whose sections' names contain this, and no tests")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--docs", type=Path, help=f"page to write into (on a GPU by default {PAGE.relative_to(ROOT)})")
    parser.add_argument("--no-docs", action="store_true", help="write into no page")
    parser.add_argument("--from", dest="source", type=Path, help="run nothing, and take the results of this file")
    args = parser.parse_args(arguments)
    if args.source is not None:
        machine, sections = from_json(json.loads(args.source.read_text(encoding="utf-8")))
        return _show(machine, sections, None, None if args.no_docs else args.docs or PAGE)
    if (problem := _problem(args.device)) is not None:
        print(problem, file=sys.stderr)
        return 2
    quick = args.quick or args.device == "cpu"
    deadline = Deadline(args.minutes)
    tests = [] if args.only else [tested(suite, args.device, deadline) for suite in SUITES]
    rounds = args.rounds or (2 if quick else 15)
    machine, rows, failed = measured_rows(args.device, rounds, quick, args.only, deadline)
    page = args.docs or (PAGE if args.device == "cuda" and not (quick or args.only) else None)
    passed = all(target.value == 0 for target in tests)
    sections = [Section("Tests", targets=tests), *rows] if tests else rows
    _show(machine, sections, args.out, None if args.no_docs else page)
    if not passed:
        print("not every test ran and passed, see above", file=sys.stderr)
    return int(failed or not passed)


def _show(machine: dict[str, Any], sections: list[Section], out: Path | None, page: Path | None) -> int:
    text = markdown(heading(machine), sections)
    print(text)
    if out is not None:
        out.write_text(json.dumps(as_json(machine, sections), indent=2), encoding="utf-8")
        print(f"written to {out}", file=sys.stderr)
    if page is not None:
        put_into(page, text, by="make gpu")
        print(f"written into {page}", file=sys.stderr)
    return 0


def _problem(device: str) -> str | None:
    """Say what is missing, if nothing can run."""
    if missing := [package for package in NEEDED if find_spec(package) is None]:
        return f"{sys.executable} lacks {', '.join(missing)}: install them, or call another Python that has them"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return NO_GPU.format(version=torch.__version__)
    return None


def tested(suite: Suite, device: str, deadline: Deadline) -> Target:
    """Run tests; returns how many failed, or why it is not known."""
    what = f"tests that failed: {suite.name}"
    if missing := [name for name in ("pytest", suite.needs) if find_spec(name) is None]:
        return _aloud(Target(what, None, note=f"{missing[0]} is not installed"))
    print(f"... tests: {suite.name}", file=sys.stderr, flush=True)
    seconds = deadline.left(suite.seconds)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-c", "benchmarks/gpu_pytest.ini", f"--rootdir={ROOT}"]
        code = _run([*command, f"--junit-xml={report}", *suite.paths], seconds, {VARIABLE: device})
        if code is None:
            return _aloud(Target(what, None, note=f"they did not end within {seconds:.0f} s"))
        if not report.exists():
            return _aloud(Target(what, None, note=f"pytest ended with {code}"))
        counts = _counts(report)
    ran = counts["tests"] - counts["skipped"]
    broke = counts["failures"] + counts["errors"]
    if ran == 0 or (code != 0 and not broke):
        return _aloud(Target(what, None, note=f"pytest ended with {code} after {ran} tests"))
    return Target(what, broke, 0, note=f"{ran - broke} passed, {counts['skipped']} skipped, {counts['time']:.0f} s")


def _counts(report: Path) -> dict[str, Any]:
    """Return the counts of a report of pytest."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts: dict[str, Any] = {name: int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")}
    return {**counts, "time": float(suite.get("time", 0))}


def _aloud(target: Target) -> Target:
    print(f"    {target.what}: {target.verdict}", file=sys.stderr, flush=True)
    return target


def measured_rows(
    device: str, rounds: int, quick: bool, only: str, deadline: Deadline
) -> tuple[dict[str, Any], list[Section], bool]:
    """Measure the rows in a process of their own; what is done when the time is over counts."""
    with tempfile.TemporaryDirectory() as folder:
        into, seconds = Path(folder) / "rows.jsonl", deadline.left()
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_rows", "--device", device, "--only", only]
        command += ["--rounds", str(rounds), "--into", str(into), "--seconds", str(seconds), *["--quick"] * quick]
        code = _run(command, seconds, {"MI_CROW_LIGHTNING_REPORT": "off"})
        lines = [json.loads(line) for line in _whole_lines(into)]
    if not lines:
        machine = {"date": time.strftime("%Y-%m-%d"), "device": device, "threads": "?", "load": "?", "rounds": rounds}
        return {**machine, "python": sys.version.split()[0], "versions": {}}, [_lost("every row", code)], True
    first, *done = lines
    rows = [section_from(line["section"]) for line in done]
    missing = first["names"][len(done) :]
    rows += [_lost(name, code) for name in missing]
    return first["machine"], rows, bool(missing and code is not None) or any(line["failed"] for line in done)


def _lost(name: str, code: int | None) -> Section:
    note = "left out, the time was over" if code is None else f"failed: the process ended with {code}"
    return Section(name, targets=[_aloud(Target(name, None, note=note))])


def _whole_lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _run(command: list[str], seconds: float, more: dict[str, str]) -> int | None:
    """Run a command in the project's folder; returns its exit code, or ``None`` if it had to be ended."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    here = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if "cpu" in (*command, *more.values()):
        here["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from threads
    # A separate session: compilers that it started end with it.
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **here, **more}, stdout=sys.stderr, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):  # all of them are gone
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
