"""The table of faults is true: each row names tests that exist, and every test of faults stands in a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    row
    for row in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    if row.startswith("| ") and not row.startswith("| fault |")
]
FAULTS = ("callback/test_hook_faults.py", "callback/test_faults_around.py", "store/test_store_in_a_run.py")

# Not about a fault of their own: what a row says is right, seen from another side.
BESIDE = {"test_a_controller_may_ask_the_bare_model", "test_foreign_handles_stay_whatever_fails"}


def defined_in(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_names_tests_that_exist(row: str) -> None:
    _, _, _, tests, _ = row.split("|")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert named and len(named) == tests.count("`") / 2
    for file, test in named:
        assert test in defined_in(ROOT / file), f"{file} has no {test}"


@pytest.mark.parametrize("file", FAULTS)
def test_each_fault_that_is_tested_has_a_row(file: str) -> None:
    told = set(re.findall(r"::(\w+)`", "".join(ROWS)))
    assert defined_in(ROOT / "tests" / file) - BESIDE <= told
