"""The way that CONTRIBUTING.md leads to a detector: its file works, has a doctest that holds, and its test passes."""

from __future__ import annotations

import doctest
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
NAME = "mi_crow_lightning.hooks.detectors.positive_share"


def blocks() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split("\n## A detector, step by step\n")[1].split("\n## ")[0]
    found = re.findall(r"^ *```python\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The detector's file, as if it were in its place."""
    module = ModuleType(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(compile(blocks()[0], str(PAGE), "exec", dont_inherit=True), module.__dict__)
    return module


def test_the_doctest_holds(written: ModuleType) -> None:
    assert doctest.testmod(written) == (0, 2)


def test_the_test_passes(written: ModuleType) -> None:
    assert len(blocks()) == 2
    namespace: dict[str, object] = {"__name__": "test_positive_share"}
    exec(compile(blocks()[1], str(PAGE), "exec", dont_inherit=True), namespace)
    (test,) = (value for name, value in namespace.items() if name.startswith("test_"))
    test()  # type: ignore[operator]


def test_the_paths_are_there() -> None:
    section = PAGE.read_text(encoding="utf-8")
    root = PAGE.parent
    for path in ("mi_crow_lightning/hooks/__init__.pyi", "tests/test_public_api.py", "tests/test_api_pages.py"):
        assert f"`{path}`" in section and (root / path).is_file()
    for path in ("docs/reference/api/detectors.md", "docs/reference/statistics.md", "docs/how-to/own_hooks.md"):
        assert path in section and (root / path).is_file()
