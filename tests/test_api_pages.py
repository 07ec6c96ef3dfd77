"""The API reference is whole: what is exported has its place in a page, and what a page names can be imported."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_public_api import PACKAGES

DOCS = Path(__file__).parents[1] / "docs"
TARGETS = [
    (target, page.relative_to(DOCS).as_posix())
    for page in sorted(DOCS.rglob("*.md"))
    for target in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]


def resolved(target: str) -> Any:
    """The object that a dotted name stands for.

    Raises:
        AttributeError, ModuleNotFoundError: there is none.
    """
    path, _, name = target.rpartition(".")
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name != target and error.name != path:
            raise
        return getattr(resolved(path), name)


def is_documented(package: str, name: str, targets: set[str]) -> bool:
    """Whether a page shows what ``package`` exports: by its name, or in its module."""
    value = getattr(importlib.import_module(package), name)
    if any(target.endswith(f".{name}") and resolved(target) is value for target in targets):
        return True
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__module__ in targets and is_shown(value.__module__, name)
    # A constant does not know where it is written.
    of_value = [target for target in targets if getattr(resolved(target), name, None) is value]
    return any(inspect.ismodule(resolved(module)) and is_shown(module, name) for module in of_value)


def is_shown(module: str, name: str) -> bool:
    """Whether a module's page shows a name: mkdocstrings leaves out what has no docstring."""
    source = inspect.getsource(importlib.import_module(module))
    body = ast.parse(source).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return ast.get_docstring(node) is not None
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_exported_is_documented(package: str) -> None:
    path, targets = f"mi_crow_lightning{package}", {target for target, _ in TARGETS}
    left_out = [name for name in importlib.import_module(path).__all__ if not is_documented(path, name, targets)]
    assert not left_out, f"{path} exports what no page below docs/ shows: add '::: <module>.{left_out[0]}' to one"


@pytest.mark.parametrize(("target", "page"), TARGETS)
def test_what_is_documented_can_be_imported(target: str, page: str) -> None:
    assert resolved(target).__doc__, f"{target}, in {page}, has no docstring"


def test_nothing_is_documented_twice() -> None:
    targets = [target for target, _ in TARGETS]
    assert len(targets) > 50 and sorted(set(targets)) == sorted(targets)


def test_what_is_missing_is_found() -> None:
    hooks, metrics = "mi_crow_lightning.hooks", "mi_crow_lightning.metrics"
    for package, name, targets, expected in (
        (hooks, "Detector", {f"{hooks}.layers"}, False),
        (hooks, "Detector", {f"{hooks}.Detector"}, True),
        (hooks, "Detector", {f"{hooks}.detector.Detector"}, True),
        (hooks, "Detector", {f"{hooks}.detector"}, True),
        (metrics, "EDGES", {f"{metrics}.rows"}, False),
        (metrics, "EDGES", {f"{metrics}.log2_bins"}, True),
        (metrics, "EDGES", {f"{metrics}.activation"}, False),  # where it is only used
    ):
        assert is_documented(package, name, targets) is expected, (name, targets)
    for wrong in ("mi_crow_lightning.hooks.nothing", "mi_crow_lightning.hooks.detector.Nothing", "nothing.at.all"):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            resolved(wrong)
