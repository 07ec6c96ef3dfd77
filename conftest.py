"""What pytest must not import, and what tests and doctests must not leave: figures that stay open."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

os.environ.setdefault("MPLBACKEND", "agg")  # no windows

# The doctests' collection would import these modules, which need triton or numba.
NEED_TRITON = ["mi_crow_lightning/metrics/one_pass/on_cuda/*.py", "tests/metrics/one_pass/on_cuda/program_compile.py"]
NEED_NUMBA = ["mi_crow_lightning/metrics/one_pass/in_numba/look.py"]

collect_ignore_glob = [] if find_spec("triton") else NEED_TRITON
collect_ignore_glob += [] if find_spec("numba") else NEED_NUMBA


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Close what a test has drawn: pyplot keeps it, and warns when there are many."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
