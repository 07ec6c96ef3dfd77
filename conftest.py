"""What pytest must not import: the doctests' collection would, and these modules need triton."""

from __future__ import annotations

from importlib.util import find_spec

NEED_TRITON = ["mi_crow_lightning/metrics/one_pass/on_cuda/*.py", "tests/metrics/one_pass/on_cuda/program_compile.py"]

collect_ignore_glob = [] if find_spec("triton") else NEED_TRITON
