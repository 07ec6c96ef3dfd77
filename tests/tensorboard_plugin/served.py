"""A real `tensorboard` process, which finds the plugin by the entry point of `pyproject.toml`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def entry_points() -> str:
    """The entry points of `pyproject.toml`, in the form in which an installed package has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    group = re.search(r'^\[project\.entry-points\.tensorboard_plugins\]\n(\w+) = "([^"]+)"$', text, re.MULTILINE)
    assert group is not None
    return f"[tensorboard_plugins]\n{group[1]} = {group[2]}\n"


def installed(folder: Path) -> Path:
    """A folder that, on the path, stands for the installed package, also where that is older than `pyproject.toml`."""
    info = folder / "mi_crow_lightning-0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mi-crow-lightning\nVersion: 0.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points(), encoding="utf-8")
    return folder


@contextmanager
def tensorboard(logdir: Path, folder: Path, *options: str, python: Path | None = None) -> Iterator[str]:
    """The address of a TensorBoard that shows a log.

    Args:
        logdir: the log.
        folder: an empty folder, for what the process needs.
        options: TensorBoard's own, e.g. ``--load_fast=false``.
        python: that of an environment which has the package; by default this one, with the checkout on its path.
    """
    path = "" if python else os.pathsep.join([str(installed(folder / "path")), str(ROOT)])
    start = [str(python or sys.executable), "-m", "tensorboard.main"]
    command = [*start, "--logdir", str(logdir), "--port", "0", "--host", "127.0.0.1"]
    with (folder / "tensorboard.log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, "--reload_interval", "1", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            yield _address(process, folder / "tensorboard.log")
        finally:
            process.terminate()
            process.wait(timeout=20)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        text = log.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"http://\S+:\d+/\S*", text)
        if found:
            return found[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"TensorBoard does not answer; it wrote:\n{log.read_text(encoding='utf-8', errors='replace')}")


def fetch(address: str) -> bytes:
    """What an address answers, once TensorBoard has read the log far enough to know it."""
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code != 404 or time.monotonic() > until:
                raise
            time.sleep(0.1)
