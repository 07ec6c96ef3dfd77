"""What works with what, and what happens when something fails: tests show what the pages say, and each fault has a row.

How a test says what it shows stands in `tests.claims`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests import claims

FILES = claims.parsed_tests()
MARKS = claims.marks(FILES)
FAULTS = [file for file, module in FILES.items() if claims.makes_things_fail(module)]
RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def test_each_claim_is_shown_by_a_test() -> None:
    shown = {mark.key for mark in MARKS}
    assert [key for key in claims.claims() if key not in shown] == []


def test_each_marker_belongs_to_a_claim() -> None:
    claimed = set(claims.claims())
    assert [mark for mark in MARKS if mark.key not in claimed] == []


def test_each_claim_has_its_own_key() -> None:
    keys = claims.claims()
    assert len(set(keys)) == len(keys) > 150


@pytest.mark.parametrize("file", FAULTS)
def test_each_fault_that_is_tested_has_a_row(file: str) -> None:
    shown = {mark.test for mark in MARKS if mark.file == file and mark.key.startswith("reliability/")}
    assert [test.name for test in claims.tests_of(file, FILES[file]) if test.name not in shown] == []


def test_some_files_make_things_fail() -> None:
    assert len(FAULTS) >= 3


def test_markers_stand_on_tests_only() -> None:
    """On a helper, a class or a parameter nobody would find them."""
    for file, module in FILES.items():
        written = sum(claims.is_marker(node, "documents") for node in ast.walk(module))
        assert written == sum(len(claims.markers_of(test)) for test in claims.tests_of(file, module)), file


def test_cells_hold_a_symbol_and_a_note() -> None:
    form = rf"[{claims.CLAIMS}{claims.NO_CLAIMS}]( [{RAISED}]+)?"
    for section in claims.sections("compatibility"):
        assert section.columns == ["feature", "detectors", "controllers", "logging"]
        wrong = [row for row in section.rows if not all(re.fullmatch(form, cell) for cell in row[1:])]
        assert wrong == [], section.title


@pytest.mark.parametrize("page", claims.PAGES)
def test_notes_are_pointed_to_and_are_there(page: str) -> None:
    digits = str.maketrans(RAISED, "0123456789")
    for section in claims.sections(page):
        raised = re.findall(f"[{RAISED}]+", " ".join(cell for row in section.rows for cell in row))
        pointed_to = sorted({int(number.translate(digits)) for number in raised})
        assert section.notes == [str(number) for number in pointed_to], section.title


@pytest.mark.parametrize("page", claims.PAGES)
def test_lines_can_be_read(page: str) -> None:
    assert [line for line in claims.page(page).splitlines() if len(line) > 160] == []


def messages() -> Iterator[str]:
    """The texts of the package that are no docstrings, with … for what is filled in."""
    for file in (claims.ROOT / "mi_crow_lightning").rglob("*.py"):
        module = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
        for node in ast.walk(module):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield node.value


@pytest.mark.parametrize("page", claims.PAGES)
def test_quoted_messages_are_those_of_the_package(page: str) -> None:
    said = list(messages())
    for quote in re.findall(r"“([^”]*)”", claims.page(page)):
        parts = [re.escape(part.strip()) for part in " ".join(quote.split()).split("…")]
        assert any(re.search(".*".join(parts), text, flags=re.S) for text in said), f"no message says “{quote}”"
