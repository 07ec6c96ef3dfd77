"""Checks what concerns a change, in a minute: ``make check ARGS="path [path ...]"``.

Of the files that are given, Python is linted, modules of the package are typed, and these are tested:

- for a module of the package the tests named after it (``hooks/detector.py``: ``tests/hooks/test_detector*.py``), or if
  there are none its folder's, or those that import it; its doctests; and the tests of what is public and documented;
- for a file below ``tests/`` itself, or the tests that use it;
- for a page its blocks and links, and for a notebook what its file holds.

A folder stands for the files in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mi_crow_lightning"
PUBLIC = ["tests/test_public_api.py", "tests/test_api_pages.py"]
BY_FOLDER = {"benchmarks": "tests/test_benchmarks.py", "examples": "tests/test_examples.py"}


class NothingFits(ValueError):
    """What was given is nothing that can be checked by itself."""


def files_of(paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """The files that are meant, relative to ``root``.

    Raises:
        NothingFits: one is not in the project, or holds no Python and no pages.
    """
    found: list[str] = []
    for path in paths:
        here = (Path.cwd() / path).resolve()
        if not here.exists() or not here.is_relative_to(root):
            raise NothingFits(f"{path}: there is no such file or folder in {root}")
        files = [here] if here.is_file() else sorted([*here.rglob("*.py"), *here.rglob("*.md")])
        if not files:
            raise NothingFits(f"{path}: holds no Python file and no page")
        found += [file.relative_to(root).as_posix() for file in files]
    return list(dict.fromkeys(found))


def pytest_of(file: str, root: Path = ROOT) -> list[str]:
    """What pytest runs for a file: paths and IDs of tests, relative to ``root``.

    Raises:
        NothingFits: no test is about the file by itself.
    """
    path = Path(file)
    if path.parts[0] == PACKAGE and path.suffix == ".py":
        return [*_of_module(path, root), file, *PUBLIC]
    if path.parts[0] == PACKAGE and path.suffix == ".pyi":
        return PUBLIC  # the list of what a package exports
    if path.parts[0] == "tests" and path.suffix == ".py":
        return [file] if path.name.startswith("test_") else _importing(path, root)
    if path.suffix == ".md" and (path.parts[0] == "docs" or file == "README.md"):
        return list(_of_page(path, root))
    if path.suffix == ".ipynb":
        return ["tests/notebooks"]
    if path.parts[0] in BY_FOLDER and path.suffix == ".py":
        return [BY_FOLDER[path.parts[0]]]
    raise NothingFits(
        f"{file}: no test is about it by itself. Give a module of {PACKAGE}, a test, a page of docs/, or run make test "
        "and make lint"
    )


def _of_module(path: Path, root: Path) -> list[str]:
    inside = path.relative_to(PACKAGE)
    if inside.name == "__init__.py":
        return []  # it holds names alone, see PUBLIC
    folder = root / "tests" / inside.parent
    stem = inside.stem.strip("_")
    named = folder.glob(f"test_{stem}.py"), folder.glob(f"test_{stem}_*.py")
    its_own = sorted(file.relative_to(root).as_posix() for files in named for file in files)
    # At the top of tests/ are those of no module: what else lies there is about the whole.
    in_folder = sorted(folder.glob("test_*.py")) if inside.parent.parts else []
    return its_own or [file.relative_to(root).as_posix() for file in in_folder] or _importing(path, root)


def _importing(path: Path, root: Path) -> list[str]:
    """The tests that name a module."""
    name = re.compile(rf"\b{re.escape('.'.join(path.with_suffix('').parts))}\b")
    tests = sorted((root / "tests").rglob("test_*.py"))
    users = [file for file in tests if name.search(file.read_text(encoding="utf-8")) or _imports(file, path)]
    return [file.relative_to(root).as_posix() for file in users]


def _imports(file: Path, module: Path) -> bool:
    """Whether a file says ``from folder import module``."""
    package = re.escape(".".join(module.parent.parts))
    line = rf"^from {package} import .*\b{re.escape(module.stem)}\b"
    return re.search(line, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _of_page(path: Path, root: Path) -> Iterator[str]:
    text = (root / path).read_text(encoding="utf-8")
    page = path.as_posix()
    if "```python" in text:
        yield f"tests/test_documentation.py::test_the_blocks_of_a_page_run[{page}]"
    yield f"tests/test_documentation.py::test_every_fence_is_seen[{page}]"
    yield "tests/test_documentation.py::test_internal_links_lead_somewhere"
    if re.search("^::: ", text, re.MULTILINE):
        yield "tests/test_api_pages.py"


def commands(files: list[str], root: Path = ROOT) -> list[list[str]]:
    """The checks of some files, each as the arguments of Python's ``-m``."""
    python = [file for file in files if file.endswith((".py", ".pyi", ".ipynb"))]
    typed = [file for file in python if file.startswith(PACKAGE) and file.endswith(".py")]
    tests = list(dict.fromkeys(test for file in files for test in pytest_of(file, root)))
    checks = [["ruff", "check", *python], ["ruff", "format", "--check", *python]] if python else []
    return [*checks, *([["mypy", *typed]] if typed else []), ["pytest", "-q", "-n", "2", *tests]]


def main(paths: list[str]) -> int:
    """Run every check, also after one has failed, and return the exit status."""
    try:
        if not paths:
            raise NothingFits('say what has changed: make check ARGS="mi_crow_lightning/hooks/detector.py"')
        checks = commands(files_of(paths))
    except NothingFits as nothing:
        print(nothing, file=sys.stderr)
        return 2
    failed = []
    for check in checks:
        print("==", *check, flush=True)
        if subprocess.run([sys.executable, "-m", *check], cwd=ROOT).returncode:
            failed.append(" ".join(check[:2]) if check[0] == "ruff" else check[0])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
