"""The notebooks run without errors and warnings, and still show what their files hold: ``make test-notebooks``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebooks.executed import executed
from tests.notebooks.stored import NOTEBOOKS, code_cells, faults, read, shown

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(900)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_are_those_of_todays_code(path: Path, tmp_path: Path) -> None:
    now = executed(path, tmp_path)
    assert not faults(now)
    for number, (before, after) in enumerate(zip(code_cells(read(path)), code_cells(now), strict=True), 1):
        assert shown(after) == shown(before), f"code cell {number}: call docs/notebooks.py if this is right"
