"""``make check``: which tests a changed file asks for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = ["tests/test_public_api.py", "tests/test_api_pages.py"]


@pytest.fixture(scope="module")
def check() -> Any:
    spec = importlib.util.spec_from_file_location("check", ROOT / ".ci" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of the same form."""
    files = {
        **{f"mi_crow_lightning/hooks/{name}.py": "" for name in ("detector", "hook", "_private", "__init__")},
        **{f"mi_crow_lightning/hooks/detectors/{name}.py": "" for name in ("projection", "other")},
        **{f"mi_crow_lightning/hooks/rooms/{name}.py": "" for name in ("known", "unknown", "imported")},
        "mi_crow_lightning/top.py": "",
        "tests/hooks/test_detector.py": "from tests.hooks.shared import case",
        "tests/hooks/test_detector_errors.py": "from mi_crow_lightning.hooks.rooms.known import Known",
        "tests/hooks/test_detectors.py": "",
        "tests/hooks/test_private.py": "from tests.hooks import one, shared",
        "tests/hooks/shared.py": "",
        "tests/hooks/detectors/test_projection.py": "from mi_crow_lightning.hooks.rooms import imported",
        "tests/hooks/detectors/test_projection_state.py": "import mi_crow_lightning.hooks.rooms.knownish",
        "tests/test_whole.py": "",
        "docs/how/page.md": "```python\n1\n```\n",
        "docs/plain.md": "words",
        "docs/api/hooks.md": "::: mi_crow_lightning.hooks.detector",
        "README.md": "words",
        "pyproject.toml": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


HOOKS = [f"tests/hooks/test_{name}.py" for name in ("detector", "detector_errors", "detectors", "private")]
BLOCKS, FENCES, LINKS = (
    f"tests/test_documentation.py::test_{name}"
    for name in ("the_blocks_of_a_page_run", "every_fence_is_seen", "internal_links_lead_somewhere")
)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("hooks/detector.py", HOOKS[:2]),
        ("hooks/_private.py", HOOKS[3:]),
        ("hooks/hook.py", HOOKS),
        ("hooks/detectors/projection.py", [f"tests/hooks/detectors/test_projection{end}.py" for end in ("", "_state")]),
        ("hooks/detectors/other.py", [f"tests/hooks/detectors/test_projection{end}.py" for end in ("", "_state")]),
        ("hooks/rooms/known.py", ["tests/hooks/test_detector_errors.py"]),
        ("hooks/rooms/imported.py", ["tests/hooks/detectors/test_projection.py"]),
        ("hooks/rooms/unknown.py", []),
        ("hooks/__init__.py", []),
        ("top.py", []),
    ],
)
def test_a_module_asks_for_its_tests_its_doctests_and_the_public_ones(
    check: Any, project: Path, file: str, expected: list[str]
) -> None:
    file = f"mi_crow_lightning/{file}"
    assert check.pytest_of(file, project) == [*expected, file, *PUBLIC]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tests/hooks/test_detectors.py", ["tests/hooks/test_detectors.py"]),
        ("tests/hooks/shared.py", ["tests/hooks/test_detector.py", "tests/hooks/test_private.py"]),
        ("docs/how/page.md", [f"{BLOCKS}[docs/how/page.md]", f"{FENCES}[docs/how/page.md]", LINKS]),
        ("mi_crow_lightning/hooks/__init__.pyi", PUBLIC),
        ("docs/plain.md", [f"{FENCES}[docs/plain.md]", LINKS]),
        ("README.md", [f"{FENCES}[README.md]", LINKS]),
        ("docs/how/notebook.ipynb", ["tests/notebooks"]),
        ("docs/api/hooks.md", [f"{FENCES}[docs/api/hooks.md]", LINKS, PUBLIC[1]]),
    ],
)
def test_other_files_ask_for_theirs(check: Any, project: Path, file: str, expected: list[str]) -> None:
    assert check.pytest_of(file, project) == expected


def test_what_fits_nothing_is_said(check: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(check.NothingFits, match=r"pyproject\.toml: no test is about it by itself\. Give a module of"):
        check.pytest_of("pyproject.toml", project)
    monkeypatch.chdir(project)
    (project / "empty").mkdir()
    for given, message in (("nothing.py", "no such file"), ("..", "no such file"), ("empty", "holds no Python file")):
        with pytest.raises(check.NothingFits, match=message):
            check.files_of([given], project)


def test_a_folder_stands_for_its_files(check: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "mi_crow_lightning")
    folder = "mi_crow_lightning/hooks/detectors"
    assert check.files_of(["hooks/detectors", "hooks/detectors/other.py"], project) == [
        f"{folder}/other.py",
        f"{folder}/projection.py",
    ]


def test_each_kind_of_file_has_its_checks(check: Any, project: Path) -> None:
    module, test, page = "mi_crow_lightning/hooks/detector.py", "tests/hooks/test_private.py", "docs/plain.md"
    lint, form, types, tests = check.commands([module, test, page], project)
    assert lint == ["ruff", "check", module, test] and form == ["ruff", "format", "--check", module, test]
    assert types == ["mypy", module]
    assert tests == ["pytest", "-q", "-n", "2", *HOOKS[:2], module, *PUBLIC, test, f"{FENCES}[{page}]", LINKS]
    assert check.commands(["a.ipynb"], project)[0] == ["ruff", "check", "a.ipynb"]
    assert check.commands([page], project) == [["pytest", "-q", "-n", "2", f"{FENCES}[{page}]", LINKS]]


def test_the_files_of_this_project_are_found(check: Any) -> None:
    """The tests that are named are there, whatever is renamed."""
    for file in (
        "mi_crow_lightning/hooks/summing_detector.py",
        "benchmarks/cases.py",
        "examples/cli.py",
        "README.md",
        "a.ipynb",
    ):
        for test in check.pytest_of(file):
            assert (ROOT / test.partition("::")[0]).exists(), test


@pytest.mark.parametrize(
    ("paths", "code", "said"),
    [
        ([], 2, 'say what has changed: make check ARGS="'),
        (["Makefile"], 2, "Makefile: no test is about it by itself"),
        (["no/such/file.py"], 2, "no/such/file.py: there is no such file or folder"),
    ],
)
def test_the_script_says_what_it_cannot_do(paths: list[str], code: int, said: str) -> None:
    ran = subprocess.run([sys.executable, ".ci/check.py", *paths], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == code and said in ran.stderr


def test_every_check_runs_though_one_fails() -> None:
    """On a file that is badly formed, and a test all the same: it is collected, and holds none."""
    file = ROOT / "tests" / "test_badly_formed_for_a_moment.py"
    try:
        file.write_text("import os\ndef test_it( ): pass\n", encoding="utf-8")
        ran = subprocess.run([sys.executable, ".ci/check.py", str(file)], cwd=ROOT, capture_output=True, text=True)
    finally:
        file.unlink(missing_ok=True)
    assert ran.returncode == 1 and ran.stderr.strip().endswith("failed: ruff check, ruff format")
    assert "1 passed" in ran.stdout
