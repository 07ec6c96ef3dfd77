"""The rows of the benchmarks that a GPU changes, each written down as soon as it is measured.

`benchmarks.gpu` runs this in a process that it can end.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.__main__ import about, measured, sections
from benchmarks.report import Section, Target
from mi_crow_lightning.metrics.one_pass.on_cuda import choice

HOST = ("growth", "log step", "event file", "tab in TensorBoard")
"""Sections that no GPU changes."""

FIRST = ("one tensor", "six numbers", "tiny GPT-2", "accuracy", "host time a site", "vectors by row")
LAST = ("compiled model", "compiled model by form")

RESERVE = 15
"""Seconds before the end in which nothing new begins."""


def chosen(device: torch.device, rounds: int, quick: bool) -> list[tuple[str, Callable[[], Section]]]:
    """Return the sections to measure: first the quick ones, last the one that compiles."""
    found = [(name, measure) for name, measure in sections(device, rounds, quick) if name not in HOST]
    found.sort(key=lambda section: (section[0] not in FIRST, section[0] in LAST))
    return [*found, ("kernels", lambda: kernels(device))]


def kernels(device: torch.device) -> Section:
    """Say whether the kernels measured, or plain torch took their place."""
    given_up = device.type == "cuda" and not choice.kernels_run_on(device)
    return Section("Kernels", targets=[Target("devices on which the statistics kernel does not run", int(given_up), 0)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_rows", description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args(arguments)
    start = time.monotonic()
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device(args.device)
    if args.quick:
        torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = [(name, measure) for name, measure in chosen(device, args.rounds, args.quick) if args.only in name]
    with args.into.open("w", encoding="utf-8") as file:

        def write(**line: object) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        write(machine=about(device, args.rounds), names=[name for name, _ in rows])
        for name, measure in rows:
            left = args.seconds - (time.monotonic() - start)
            if left < RESERVE:
                write(name=name, failed=False, section=asdict(left_out(name)))
                continue
            section, failed = measured(name, measure)
            write(name=name, failed=failed, section=asdict(section))
    return 0


def left_out(name: str) -> Section:
    """Return the section of what there was no time for."""
    print(f"... {name}: left out, the time is over", file=sys.stderr, flush=True)
    return Section(name, targets=[Target(name, None, note="left out, the time was over")])


if __name__ == "__main__":
    sys.exit(main())
