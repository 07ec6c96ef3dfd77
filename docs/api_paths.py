"""The API reference names things by the path that users import them from: a hook of mkdocs.

A page lists modules, ``::: mi_crow_lightning.hooks.hook``. Each is replaced by the objects in it, by the shortest path
that a package exports them under, ``::: mi_crow_lightning.Hook``; an object that no package exports keeps the path of
its module. The stubs of the packages, ``__init__.pyi``, are read as text, so that nothing of the package is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "mi_crow_lightning"

_DIRECTIVE = re.compile(r"^::: ([\w.]+)\n((?: {4}.*\n)*)", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str | None:
    """Return a page of the API reference with its objects in place of their modules."""
    if not page.file.src_uri.startswith("reference/api/"):
        return None
    return _DIRECTIVE.sub(lambda found: "\n".join(_directives(found[1], found[2])), markdown + "\n")


def _directives(target: str, options: str) -> Iterator[str]:
    file = ROOT.joinpath(*target.split(".")).with_suffix(".py")
    if not file.exists():  # an object of a module
        module, _, name = target.rpartition(".")
        yield f"::: {import_path(module, name)}\n{options}"
    elif target.count(".") == 1:  # as `mi_crow_lightning.errors`, which users import from
        yield f"::: {target}\n{options}"
    else:
        chosen = re.search(r"^ +members: \[(.*)\]\n", options, re.MULTILINE)
        names = chosen[1].split(", ") if chosen else list(_documented(file))
        left = options.replace(chosen[0], "") if chosen else options
        for name in names:
            yield f"::: {import_path(target, name)}\n{left if left.strip() != 'options:' else ''}"


def import_path(module: str, name: str) -> str:
    """Return the shortest path that an object is exported under, or that in its module."""
    written = _exports().get((module, name), (module, name))
    paths = [f"{package}.{exported}" for (package, exported), origin in _exports().items() if origin == written]
    return min(paths, key=lambda path: path.count("."), default=f"{module}.{name}")


@cache
def _exports() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the module and the name of what each package exports, however many packages hand it on."""
    handed_on = {}
    for stub in ROOT.glob(f"{PACKAGE}/**/__init__.pyi"):
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        for line in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.ImportFrom) and line.module:
                handed_on.update({(package, alias.name): (line.module, alias.name) for alias in line.names})

    def origin(place: tuple[str, str]) -> tuple[str, str]:
        return origin(handed_on[place]) if place in handed_on else place

    return {place: origin(place) for place in handed_on}


def _documented(file: Path) -> Iterator[str]:
    """Yield the public names with a docstring that a module defines, in its order."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            name, documented = node.name, ast.get_docstring(node) is not None
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = target.id if isinstance(target, ast.Name) else "_"
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        else:
            continue
        if documented and not name.startswith("_"):
            yield name
