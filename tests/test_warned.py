"""Warnings of the package all go through one place, where a run can note them."""

from __future__ import annotations

import ast
import gc
import warnings
from pathlib import Path

import pytest

import mi_crow_lightning
from mi_crow_lightning import _warned

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


def test_a_warning_is_that_of_its_caller() -> None:
    def helper() -> None:
        _warned.warn("by the caller of the helper", RuntimeWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        helper()
        _warned.warn("here")
    first, second = caught
    assert first.filename == second.filename == __file__ and second.lineno == first.lineno + 1
    assert (first.category, second.category) == (RuntimeWarning, UserWarning)


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
