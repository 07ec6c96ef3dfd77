"""Run the notebooks of the documentation and write their outputs into them.

    .venv/bin/python docs/notebooks.py [NAME ...]

A NAME is that of a file in ``docs/tutorials``, without its ending; all are run if none is given. A notebook in which a
cell fails or warns stays as it is. ``make test-notebooks`` runs them too, and compares.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.notebooks.executed import executed  # noqa: E402
from tests.notebooks.stored import NOTEBOOKS, faults  # noqa: E402


def main(names: list[str]) -> int:
    """Run notebooks one after the other, and return the exit status."""
    known = {path.stem: path for path in NOTEBOOKS}
    if unknown := [name for name in names if name not in known]:
        print(f"there is no notebook {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    done = [_renewed(known[name]) for name in names or known]
    return int(not all(done))


def _renewed(path: Path) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(path, Path(folder))
    if found := faults(notebook):
        print(f"{path.name} stays as it is:", *found, sep="\n  ", file=sys.stderr)
        return False
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB")
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    sys.exit(main(parser.parse_args().names))
