"""``python -m tests.architectures``: check every architecture, each in a process of its own, and write the page.

Results lie in ``.sweep/VERSION/ARCHITECTURE.json``: a run that was stopped goes on where it was. Delete a file, or the
folder, to check again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.architectures.checks import outcomes
from tests.architectures.page import write_page
from tests.architectures.tiny_model import Architecture, architectures

SECONDS = 60
FOLDER = Path(".sweep")


def main() -> int:
    """Check what has no result yet; return 1 if anything is silently wrong."""
    options = _options()
    folder = FOLDER / transformers.__version__
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [one for one in architectures() if not options.only or any(fnmatchcase(str(one), p) for p in options.only)]
    missing = [one for one in chosen if options.again or not (folder / f"{one}.json").exists()]
    _check_all(missing, folder, options.processes)
    results = {str(one): json.loads((folder / f"{one}.json").read_text()) for one in chosen}
    wrong = [
        f"{name}, {check}: {found}"
        for name, checks in results.items()
        for check, found in checks.items()
        if found.startswith("wrong")
    ]
    if not options.only:
        write_page(folder)
    print("\n".join(wrong))
    print(f"{len(results)} architectures, {len(wrong)} checks silently wrong")
    return bool(wrong)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make sweep", description="Check every architecture of transformers.")
    parser.add_argument("only", nargs="*", help="patterns such as 'causal-*' or 'vision-vit'; all without one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="as many at once (the cores)")
    parser.add_argument("--again", action="store_true", help="check also what has a result")
    return parser.parse_args()


def _check_all(missing: list[Architecture], folder: Path, processes: int) -> None:
    """Check in forked processes, which need not import torch and transformers again."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(missing)), {}
    while waiting or running:
        while waiting and len(running) < processes:
            one = waiting.pop()
            process = context.Process(target=_check, args=(one, folder))
            process.start()
            running[process] = (one, time.monotonic())
        time.sleep(0.02)
        for process, (one, started) in list(running.items()):
            if process.is_alive() and time.monotonic() - started < SECONDS:
                continue
            late = process.is_alive()
            if late:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            del running[process]
            if not (folder / f"{one}.json").exists() or late:
                why = f"not built: more than {SECONDS} s" if late else f"not built: exit code {process.exitcode}"
                _write(folder, one, {"built": why})
            print(f"{len(missing) - len(waiting) - len(running)}/{len(missing)} {one}", file=sys.stderr, flush=True)


def _check(one: Architecture, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.dup2(silent, 1)
    (folder / f"{one}.json").unlink(missing_ok=True)
    _write(folder, one, outcomes(one))


def _write(folder: Path, one: Architecture, found: dict[str, Any]) -> None:
    (folder / f"{one}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
