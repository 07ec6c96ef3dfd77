"""The table of what works with what is true: each cell names tests that exist, or says why it names none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| feature |")]


def defined_in(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_each_cell_names_tests_that_exist(row: str) -> None:
    _, feature, *cells, _ = row.split("|")
    assert feature.strip() and len(cells) == 3
    named = [re.findall(r"`([\w/]+\.py)::(\w+)`", cell) for cell in cells]
    assert all(tests or not cell.strip().startswith("works<") for cell, tests in zip(cells, named, strict=True))
    assert any(named) or "untested" in row
    for file, test in [test for tests in named for test in tests]:
        assert test in defined_in(ROOT / "tests" / file), f"tests/{file} has no {test}"
