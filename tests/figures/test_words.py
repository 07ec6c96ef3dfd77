"""Units are those of the page about statistics."""

from __future__ import annotations

import re
from pathlib import Path

from mi_crow_lightning.figures import words
from mi_crow_lightning.figures.words import unit_of
from mi_crow_lightning.loggers.tags import STAGES
from mi_crow_lightning.metrics import STATISTICS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "statistics.md"


def test_units_of_all_statistics() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## What is measured")[2].partition("### Details")[0]
    units = {
        name: cells[2].strip()
        for cells in (line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| `"))
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    assert set(units) == set(STATISTICS)
    assert {name: unit_of(name) for name in units} == {
        name: "" if unit.startswith("none") else unit for name, unit in units.items()
    }


def test_stages() -> None:
    assert words.STAGES == STAGES
