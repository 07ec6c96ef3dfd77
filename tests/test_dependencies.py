"""What the package imports is what pyproject.toml declares, and the other way round."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

FOR_DEVELOPERS = {"dev", "docs", "loggers"}
# Imported only where somebody else has brought them: rich and tensorboardX a user, triton torch's builds for CUDA.
WHERE_PRESENT = {"rich", "tensorboardx", "triton"}
# What others import for us: transformers to load the demo's model, Lightning to read command lines.
NOT_IMPORTED = {"accelerate", "jsonargparse", "sentencepiece"}


def lists() -> dict[str, set[str]]:
    """The names of the packages that pyproject.toml lists: ``"dependencies"``, and each extra."""
    declared = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    found = re.findall(r"^([a-z]+) = (\[.*?\])(?: *#[^\n]*)?$", declared, re.MULTILINE | re.DOTALL)
    found += re.findall(r"^(dependencies) = (\[.*?^\])$", PROJECT, re.MULTILINE | re.DOTALL)
    names = {name: map(Requirement, ast.literal_eval(text)) for name, text in found}
    return {name: {canonicalize_name(one.name) for one in listed} for name, listed in names.items()}


def for_users() -> set[str]:
    return set().union(*(names for extra, names in lists().items() if extra not in FOR_DEVELOPERS))


def imports(node: ast.AST) -> Iterator[str]:
    """The modules that a program imports, without those that only type checkers read."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        node = ast.Module(node.orelse, [])
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
        yield from (one.value for one in node.args[:1] if isinstance(one, ast.Constant))
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def imported() -> dict[str, str]:
    """The names of the packages that ours imports, each with a file that does."""
    found, known = {}, packages_distributions()
    for path in sorted((ROOT / "mi_crow_lightning").rglob("*.py")):
        for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.partition(".")[0]
            if top not in {*sys.stdlib_module_names, "mi_crow_lightning"}:
                found[canonicalize_name(known.get(top, [top])[0])] = path.name
    return found


def test_the_lists_are_read() -> None:
    assert lists().keys() >= FOR_DEVELOPERS | {"dependencies", "cli", "demo", "fast", "gguf", "pandas", "plot"}
    assert {"torch", "lightning", "numpy"} <= lists()["dependencies"] and {"gguf", "sentencepiece"} <= lists()["demo"]
    assert [*imports(ast.parse("import a.b\nif TYPE_CHECKING:\n  import c\nelse:\n  from d import e"))] == ["a.b", "d"]


def test_what_is_imported_is_declared() -> None:
    allowed = for_users() | WHERE_PRESENT
    assert {name: file for name, file in imported().items() if name not in allowed} == {}


def test_what_is_declared_is_imported() -> None:
    assert for_users() - imported().keys() == NOT_IMPORTED
    assert imported().keys() >= WHERE_PRESENT
