"""The table of what works with what is true: each cell names tests that exist, or says why it names none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| feature |")]
WITHOUT_A_TEST = re.compile(r"untested|as without|as detectors|–|history\(\)|callback_metrics|refused|by `take_readings|nothing|what")


def defined_in(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_each_cell_names_tests_that_exist(row: str) -> None:
    _, _, *cells, _ = row.split(" | ") if row.endswith(" |") else row.split("|")
    for cell in cells:
        for file, test in re.findall(r"`([\w/]+\.py)::(\w+)`", cell):
            assert test in defined_in(ROOT / "tests" / file), f"tests/{file} has no {test}"
