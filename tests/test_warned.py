"""Warnings of the package all go through one place, where a run can note them."""

from __future__ import annotations

import ast
import gc
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

import mi_crow_lightning
from mi_crow_lightning import MiCrowWarning, _warned
from mi_crow_lightning import warnings as kinds
from mi_crow_lightning.warnings import FailureWarning

PACKAGE = Path(mi_crow_lightning.__file__).parent
ALONE = ("_warned.py", "tensorboard_plugin/")  # the place itself, and the tab, which imports nothing of the package


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def warned(self, text: str) -> None:
        self.heard.append(text)


def test_no_other_module_warns_by_itself() -> None:
    found = []
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if name.startswith(ALONE):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "warnings.warn":
                found.append(f"{name}:{node.lineno}: call mi_crow_lightning._warned.warn, so that a run notes the text")
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.endswith("rank_zero_warn") and not ast.unparse(node).startswith(f"{called}(noted("):
                found.append(f"{name}:{node.lineno}: give it noted(text), so that a run notes the text")
    assert not found


def given_kinds() -> list[str]:
    """The kind of each warning in the package, once for each place that warns."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).as_posix().startswith(ALONE):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("warn", "rank_zero_warn"):
                named = [one.value for one in node.keywords if one.arg == "category"]
                found.append(ast.unparse((node.args[1:2] or named)[0]) if node.args[1:2] or named else file.name)
    return found


def test_every_warning_is_of_a_kind_and_in_the_table_of_the_page() -> None:
    page = (PACKAGE.parent / "docs" / "reference" / "warnings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`( ¹)? \| ", page, re.MULTILINE)
    assert Counter(given_kinds()) == Counter(kind for kind, _ in rows)
    assert {kind for kind, _ in rows} == set(kinds.__all__)
    assert {kind for kind, mark in rows if mark} == {
        kind for kind in kinds.__all__ if issubclass(getattr(kinds, kind), RuntimeWarning)
    }


@pytest.mark.parametrize("kind", kinds.__all__)
def test_one_kind_is_silenced_and_the_others_are_heard(kind: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=getattr(kinds, kind))
        for one in kinds.__all__:
            _warned.warn(one, getattr(kinds, one))
    heard = [str(one.message) for one in caught]
    assert heard == ([] if kind == "MiCrowWarning" else [one for one in kinds.__all__ if one != kind])
    assert all(issubclass(one.category, (UserWarning, MiCrowWarning)) for one in caught)


def test_a_warning_is_that_of_its_caller() -> None:
    def helper() -> None:
        _warned.warn("by the caller of the helper", FailureWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        helper()
        _warned.warn("here")
    first, second = caught
    assert first.filename == second.filename == __file__ and second.lineno == first.lineno + 1
    assert (first.category, second.category) == (FailureWarning, MiCrowWarning)


@pytest.mark.parametrize("action", ["ignore", "error", "always"])
def test_listeners_hear_it_whatever_the_filters_do(action: str) -> None:
    ear = Ear()
    _warned.listeners.add(ear)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter(action)  # type: ignore[arg-type]
        for _ in range(2):
            try:
                _warned.warn("once more")
            except UserWarning:
                assert action == "error"
    assert ear.heard == ["once more"] * 2
    assert _warned.noted("as it is") == "as it is" and ear.heard[-1] == "as it is"


def test_a_listener_that_nobody_holds_is_let_go() -> None:
    _warned.listeners.add(Ear())
    gc.collect()
    assert not list(_warned.listeners)
