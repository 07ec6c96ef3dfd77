"""All benchmarks: a table, and benchmark.json.

make bench                                               # about eight minutes on two CPU cores
make bench ARGS=--quick                                  # a tiny model, under a minute, to see that everything runs
make bench ARGS="--docs docs/reference/performance.md"   # also puts the tables into the page
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import cases, compile_case
from benchmarks.report import NotRun, Section, Target, as_json, heading, markdown, put_into
from benchmarks.rows_compiled import compiled
from benchmarks.rows_drift import drifting
from benchmarks.rows_forms import compiled_by_form, one_activation_by_form
from benchmarks.rows_growth import growth
from benchmarks.rows_heads import heads
from benchmarks.rows_logging import event, moved
from benchmarks.rows_memory import memory
from benchmarks.rows_probes import probing
from benchmarks.rows_sites import sites
from benchmarks.rows_small import six_numbers, tiny_gpt2
from benchmarks.rows_steering import steering
from benchmarks.rows_steering_by_row import steering_by_row
from benchmarks.rows_tab import tab
from benchmarks.rows_tensor import accuracy, one_tensor
from benchmarks.rows_watching import forward, training

PACKAGES = (
    *("torch", "triton", "numba", "transformers", "lightning", "tensorboard", "google-crc32c"),
    *("mi-crow", "nnsight", "steering-vectors"),
)


def sections(device: torch.device, rounds: int, quick: bool) -> Iterator[tuple[str, Callable[[], Section]]]:
    """Yield each section's name and the function that measures it."""
    new_tokens = 4 if quick else 16
    for case in cases(device, quick):
        yield f"training, {case.name}", lambda case=case: training(case, rounds)
        yield f"forward pass, {case.name}", lambda case=case: forward(case, 2 * rounds)
        yield f"steering, {case.name}", lambda case=case: steering(case, rounds, new_tokens)
        if "GPT-2" not in case.name:  # whose layers have other names
            yield f"drift, {case.name}", lambda case=case: drifting(case, rounds)
        yield f"probes, {case.name}", lambda case=case: probing(case, rounds)
        yield f"memory, {case.name}", lambda case=case: memory(case)
    yield "vectors by row", lambda: steering_by_row(device, 2 if quick else max(15, rounds))
    yield "growth", lambda: growth(quick)
    yield "host time a site", lambda: sites(device, 2 if quick else 40)
    yield "heads", lambda: heads(device, 2 if quick else 20, quick)
    yield "one tensor", lambda: one_tensor(device, 3 * rounds, quick)
    yield "one activation by form", lambda: one_activation_by_form(device, rounds, quick)
    yield "six numbers", lambda: six_numbers(device, rounds, quick)
    yield "tiny GPT-2", lambda: tiny_gpt2(device, 2 if quick else 20, quick)
    yield "accuracy", lambda: accuracy(device, quick)
    yield "compiled model", lambda: compiled(compile_case(device), rounds)
    yield "compiled model by form", lambda: compiled_by_form(device, 3 * rounds, quick)
    yield "log step", moved
    yield "event file", lambda: event(2 if quick else 60)
    yield "tab in TensorBoard", not_with_quick if quick else tab


def not_with_quick() -> Section:
    """Leave out a row.

    Raises:
        NotRun: always.
    """
    raise NotRun("--quick opens no browser")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="turns of each variant (default: 9; 15 on a GPU; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="use a tiny model; the numbers mean nothing")
    parser.add_argument("--only", default="", help="measure only sections whose names contain this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    parser.add_argument("--docs", type=Path, help="a page to write the tables into")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    rounds = args.rounds or (2 if args.quick else 9 if args.device == "cpu" else 15)
    if args.quick:
        torch.set_num_threads(1)  # more threads would only wait for one another
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    machine = about(device, rounds)
    found, failed = [], False
    for name, measure in sections(device, rounds, args.quick):
        if args.only not in name:
            continue
        section, broke = measured(name, measure)
        found.append(section)
        failed |= broke
    if device.type == "cpu":
        gpu = Target("ratios on a GPU (Llama of 1B parameters, GPT-2)", None, note="no CUDA device")
        found.append(Section("GPU", targets=[gpu]))
    text = markdown(heading(machine), found)
    print(text)
    args.out.write_text(json.dumps(as_json(machine, found), indent=2))
    print(f"written to {args.out}", file=sys.stderr)
    if args.docs is not None:
        put_into(args.docs, text)
    return int(failed)


def measured(name: str, measure: Callable[[], Section]) -> tuple[Section, bool]:
    """Return what was measured, or why it was not, and whether that was an error."""
    print(f"... {name}", file=sys.stderr, flush=True)
    start, failed = time.perf_counter(), False
    try:
        section = measure()
    except NotRun as reason:
        section = Section(name, targets=[Target(name, None, note=str(reason))])
    except Exception as error:  # the other rows are still worth having; the exit status reports it
        traceback.print_exc()
        section, failed = Section(name, targets=[Target(name, None, note=f"failed with {error!r}")]), True
    print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return section, failed


def about(device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the machine and the versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "rounds": rounds,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def processor() -> str:
    """Return the CPU's name, if the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
