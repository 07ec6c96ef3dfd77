"""Every link of the built site and of the guides beside it leads somewhere; links to other sites are well-formed.

`mkdocs build --strict` sees links in Markdown. It sees none in notebooks' HTML, in docstrings, or in README.md.
"""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = ("README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "CHANGELOG.md")
OTHER_SITE = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[^\s\"<>]*)?")


class Page(HTMLParser):
    """The places and the targets of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("href", "src") and value is not None and not (tag == "link" and ("rel", "preconnect") in attrs):
                self.targets.add(value)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """The pages of the site, but for the one that a server shows in place of one that is not there."""
    return {file.resolve(): Page(file) for file in site.rglob("*.html") if file.name != "404.html"}


def test_links_inside_the_site_lead_to_pages_and_places(pages: dict[Path, Page]) -> None:
    wrong, links = [], 0
    for file, page in pages.items():
        for target in page.targets:
            link = urlsplit(target)
            if link.scheme or link.netloc or target == "javascript:void(0)":
                continue
            links += 1
            to = (file.parent / unquote(link.path)).resolve() if link.path else file
            to = to / "index.html" if to.is_dir() else to
            place = unquote(link.fragment)
            if not to.exists() or (place and to.suffix == ".html" and place not in pages[to].ids and place != "__skip"):
                wrong.append(f"{file.name}: {target}")
    assert links > 5000 and wrong == []


def test_links_to_other_sites_are_well_formed(pages: dict[Path, Page]) -> None:
    found = {target for page in pages.values() for target in page.targets if urlsplit(target).scheme}
    data = {target for target in found if target.startswith("data:image/")}  # pictures of notebooks
    assert len(found - data) > 10
    assert [target for target in sorted(found - data) if not OTHER_SITE.fullmatch(target)] == []


@cache
def ids_of(page: Path) -> set[str]:
    return Page(page).ids


@pytest.mark.parametrize("guide", GUIDES)
def test_links_of_guides_lead_to_files_and_places(guide: str, site: Path) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / guide).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(<?([^)>\s]+)>?\)", text):
        link = urlsplit(target)
        if link.scheme:
            assert OTHER_SITE.fullmatch(target), target
        elif link.path:
            assert (ROOT / link.path).exists(), f"{guide} links to {target}"
            if link.fragment and link.path.startswith("docs/"):
                page = site / Path(link.path).relative_to("docs").with_suffix(".html")
                assert link.fragment in ids_of(page), f"{guide} links to {target}"
