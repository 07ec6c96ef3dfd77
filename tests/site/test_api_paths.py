"""The API reference shows what is exported by the shortest path that users may write."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mi_crow_lightning
from tests.test_api_pages import resolved

HOOK = Path(__file__).parents[2] / "docs" / "api_paths.py"


@pytest.fixture(scope="module")
def hook() -> Any:
    """The hook of mkdocs."""
    spec = spec_from_file_location("api_paths", HOOK)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(hook: Any, markdown: str, page: str = "reference/api/x.md") -> str | None:
    said: str | None = hook.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))
    return said


def test_an_object_goes_by_the_shortest_path(hook: Any) -> None:
    for module, name, path in (
        ("mi_crow_lightning.hooks.hook", "Hook", "mi_crow_lightning.Hook"),
        ("mi_crow_lightning.callback", "HookCallback", "mi_crow_lightning.HookCallback"),
        ("mi_crow_lightning.alarms.rules", "NonFinite", "mi_crow_lightning.alarms.NonFinite"),
        ("mi_crow_lightning.hooks.options", "HookOptions", "mi_crow_lightning.hooks.options.HookOptions"),
    ):
        assert hook.import_path(module, name) == path
        assert resolved(path) is resolved(f"{module}.{name}")


def test_modules_become_their_objects(hook: Any) -> None:
    page = (
        "# A\n\n::: mi_crow_lightning.hooks.hook\n    options:\n      members: [Hook]\n\n::: mi_crow_lightning.errors\n"
    )
    expected = "# A\n\n::: mi_crow_lightning.Hook\n\n::: mi_crow_lightning.errors"
    assert shown(hook, page) is not None and str(shown(hook, page)).split() == expected.split()
    options = "::: mi_crow_lightning.callback.HookCallback\n    options:\n      inherited_members: [history]\n"
    assert str(shown(hook, options)).rstrip() == options.replace(".callback", "").rstrip()
    assert shown(hook, page, "how-to/x.md") is None


def test_what_the_root_exports_has_its_heading(site: Path) -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (site / "reference" / "api").glob("*.html"))
    headings = set(re.findall(r'<h\d id="(mi_crow_lightning[\w.]*)"', pages))
    objects = {f"mi_crow_lightning.{name}" for name in mi_crow_lightning.__all__ if name != "__version__"}
    in_modules = {path for path in objects if resolved(path).__module__.count(".") == 1}  # errors, warnings
    assert objects - in_modules <= headings
    assert all(f"{resolved(path).__module__}.{path.rpartition('.')[2]}" in headings for path in in_modules)
    at_top = re.findall(r'<h2 id="(mi_crow_lightning[\w.]*)"', pages)
    assert len(at_top) > 200 and len(set(at_top)) == len(at_top)
    for path in at_top:
        resolved(path)
