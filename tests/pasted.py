"""Pages followed by copy and paste, as somebody does who has installed the package and has no checkout.

    python -m tests.pasted [WHEEL] [-- OPTIONS OF PIP INSTALL]

It makes an empty environment, installs the wheel there with all that it declares, follows the pages, and runs the demo.
Without a wheel it builds one. It asks the package index of pip, for gigabytes where that has a CUDA build of torch, so
it is called by hand before a release; `tests/test_pasted.py` does the same with what is installed already.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from tests.distributions import built, environment
from tests.pages import blocks
from tests.tensorboard_plugin.served import fetch, tensorboard

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/tutorials/first_run.md")


def follow(page: Path, python: Path, folder: Path) -> str:
    """Paste the Python blocks of a page one after the other into a file, and run it in an empty folder.

    Returns:
        What was printed.

    Raises:
        AssertionError: the file fails, or prints something else than the page says.
    """
    pasted = [block for block in blocks(page) if block.language == "python" and not block.not_run]
    (folder / "pasted.py").write_text("\n".join(block.code for block in pasted), encoding="utf-8")
    ran = subprocess.run(
        [str(python), "pasted.py"], capture_output=True, text=True, encoding="utf-8", cwd=folder, env=a_readers()
    )
    assert ran.returncode == 0, f"{page.name}: {ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    place = 0
    for block in pasted:
        found = ran.stdout.find(block.output or "", place)
        assert found >= 0, f"{page.name} says\n{block.output}\nand this was printed:\n{ran.stdout[place:]}"
        place = found + len(block.output or "")
    return ran.stdout


def a_readers() -> dict[str, str]:
    """The environment variables, without those by which a checkout would be imported."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "COVERAGE_PROCESS_START")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    return {**kept, "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}


def logdirs(page: Path) -> set[str]:
    """The folders of which a page says that TensorBoard shows them."""
    return set(re.findall(r"`tensorboard --logdir (\w+)`", page.read_text(encoding="utf-8")))


def shown_runs(logdir: Path, python: Path) -> list[str]:
    """The runs of a log in the tab of a TensorBoard that the Python of an environment starts."""
    runs: list[str] = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tensorboard(logdir.resolve(), Path(folder), python=python) as address,
    ):
        until = time.monotonic() + 60
        while not runs and time.monotonic() < until:
            index = json.loads(fetch(f"{address}data/plugin/mi_crow_lightning/index"))
            runs = [run["name"] for run in index["runs"]]
            time.sleep(0.2)
    return runs


def main(wheel: Path | None, options: list[str]) -> None:
    """Follow the pages with a wheel in an empty environment, and run the demo there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        place = Path(made)
        wheel = wheel or built(ROOT, "wheel", place / "wheel")
        print(f"installing {wheel.name} into an empty environment")
        python = environment(place / "environment")
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", str(wheel), *options], check=True, env=a_readers()
        )
        for name in PAGES:
            (folder := place / Path(name).stem).mkdir()
            began = time.monotonic()
            follow(ROOT / name, python, folder)
            print(f"{name}: runs as it stands, in {time.monotonic() - began:.0f} s")
            for logdir in logdirs(ROOT / name):
                runs = shown_runs(folder / logdir, python)
                assert runs, f"{name}: the tab shows nothing of {logdir}"
                print(f"tensorboard --logdir {logdir}: the tab shows {', '.join(runs)}")
        command = [str(python.with_name("mi-crow-lightning")), "demo", "--logdir", "logs"]
        subprocess.run(command, check=True, cwd=place, env=a_readers())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", nargs="?", type=lambda given: Path(given).resolve(), help="default: build one")
    parser.add_argument("options", nargs="*", help="options of pip install, behind --, such as -c constraints.txt")
    given = parser.parse_args()
    main(given.wheel, given.options)
