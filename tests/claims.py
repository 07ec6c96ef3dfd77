"""What the pages claim, and which tests say that they show it. Files are read, nothing is imported.

A claim has a key, made of its page, row and column: ``compatibility/ddp/logging``, ``reliability/a-hook-sleeps``. The
tests that show it say so by ``@pytest.mark.documents(key)``, so they may be renamed and moved.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = ("compatibility", "reliability")
CLAIMS, NO_CLAIMS = "✓○✗", "=?\N{EN DASH}"


class Section(NamedTuple):
    """The table below one heading, and the numbers of the notes below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


class Mark(NamedTuple):
    """One key that one test shows."""

    file: str
    test: str
    key: str


def page(name: str) -> str:
    (file,) = (ROOT / "docs").rglob(f"{name}.md")
    return file.read_text(encoding="utf-8")


def sections(name: str) -> list[Section]:
    found = []
    for part in re.split(r"^## ", page(name), flags=re.M)[1:]:
        table = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| (.*) \|$", part, flags=re.M)]
        notes = re.findall(r"^(\d+)\. ", part, flags=re.M)
        found.append(Section(part.splitlines()[0], table[0], table[1:], notes))
    return found


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "")).strip("-")


def claims() -> list[str]:
    """The keys of all that the pages claim."""
    cells = [
        f"compatibility/{slug(row[0])}/{column}"
        for section in sections("compatibility")
        for row in section.rows
        for column, cell in zip(section.columns[1:], row[1:], strict=True)
        if cell[0] in CLAIMS
    ]
    return cells + [f"reliability/{slug(row[0])}" for section in sections("reliability") for row in section.rows]


def parsed_tests() -> dict[str, ast.Module]:
    files = [file for file in sorted((ROOT / "tests").rglob("*.py")) if not file.stem.endswith("_for_a_moment")]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def tests_of(file: str, module: ast.Module) -> list[ast.FunctionDef]:
    """The tests that pytest collects from a file."""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return [node for node in functions if node.name.startswith("test_")] if "/test_" in file else []


def is_marker(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == f"pytest.mark.{name}"


def markers_of(test: ast.FunctionDef) -> list[ast.Call]:
    """Its `documents`."""
    return [call for call in test.decorator_list if isinstance(call, ast.Call) and is_marker(call.func, "documents")]


def marks(files: dict[str, ast.Module]) -> list[Mark]:
    return [
        Mark(file, test.name, ast.literal_eval(key))
        for file, module in files.items()
        for test in tests_of(file, module)
        for call in markers_of(test)
        for key in call.args
    ]


def makes_things_fail(module: ast.Module) -> bool:
    """Whether it has ``pytestmark = pytest.mark.faults``, alone or in a list."""
    assigned = [node for node in module.body if isinstance(node, ast.Assign)]
    values = [node.value for node in assigned if ast.unparse(node.targets[0]) == "pytestmark"]
    return any(is_marker(part, "faults") for value in values for part in ast.walk(value))
