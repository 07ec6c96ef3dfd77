"""Fuzz tests go on until their minutes are over, and others run once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.claims import ROOT

CONFTEST = """
from hypothesis import settings
from tests.fuzzing import pytest_collection_modifyitems, pytest_pyfunc_call
settings.load_profile("fuzz")
"""
TESTS = """
import pytest
from hypothesis import given, settings, strategies as st

@pytest.fixture(scope="session")
def seen(): return []

@pytest.mark.fuzz
@settings(max_examples=5)
@given(value=st.integers())
def test_many(seen, value):
    seen.append(value)

def test_one(seen): assert len(set(seen)) > 50, len(seen)
"""


def run(folder: Path, minutes: str) -> str:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = fuzz\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--rootdir",
        ".",
        "test_it.py",
    ]
    environment = {**os.environ, "FUZZ_MINUTES": minutes, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize(("minutes", "outcome"), [("0.02", "2 passed"), ("", "1 failed, 1 passed")])
def test_minutes_are_spent_on_fuzz_tests(tmp_path: Path, minutes: str, outcome: str) -> None:
    printed = run(tmp_path, minutes)
    assert outcome in printed, printed
