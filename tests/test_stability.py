"""Each exported name is stable or experimental, and the page says which."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import mi_crow_lightning
from tests.test_public_api import PACKAGES

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "stability.md"
ROW = re.compile(r"^\| `(mi_crow_lightning[\w.]*)` \|([^|]*)\|([^|]*)\|$", re.MULTILINE)
LISTED = {
    package: tuple(re.findall(r"`(\w+)`", names) for names in lists)
    for package, *lists in ROW.findall(PAGE.read_text(encoding="utf-8"))
}


def test_the_page_lists_every_package() -> None:
    assert sorted(LISTED) == sorted(f"mi_crow_lightning{name}" for name in PACKAGES)


@pytest.mark.parametrize("package", sorted(LISTED))
def test_each_exported_name_is_in_one_list(package: str) -> None:
    stable, experimental = LISTED[package]
    exported = set(import_module(package).__all__)
    assert not (missing := exported - {*stable, *experimental}), (
        f"in {PAGE.name}, call stable or experimental: {missing}"
    )
    assert not (gone := {*stable, *experimental} - exported), f"delete from {PAGE.name}: {gone}"
    assert len({*stable, *experimental}) == len(stable) + len(experimental)


def test_a_name_is_the_same_in_every_place() -> None:
    of_object: dict[int, set[str]] = {}
    for package, lists in LISTED.items():
        for status, names in zip(("stable", "experimental"), lists, strict=True):
            for name in names:
                of_object.setdefault(id(getattr(import_module(package), name)), set()).add(f"{status} {name}")
    assert [found for found in of_object.values() if len(found) > 1] == []
    assert len(LISTED["mi_crow_lightning"][0]) > len(mi_crow_lightning.__all__) / 2
