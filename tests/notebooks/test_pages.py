"""The hook of mkdocs in `docs/notebook_pages.py`: what is left of a page of mkdocs-jupyter."""

from __future__ import annotations

import importlib.util
import logging
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest

from tests.notebooks.stored import NOTEBOOKS, ROOT, code_cells, read

convert = pytest.importorskip("mkdocs_jupyter.convert")
files_of_mkdocs = pytest.importorskip("mkdocs.structure.files")

pytestmark = pytest.mark.filterwarnings("default")  # of nbconvert and what it imports


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs" / "notebook_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(*sources: str) -> Any:
    """The files of a site with these pages."""
    all_of_them = [
        files_of_mkdocs.File(source, str(ROOT / "docs"), "/site", use_directory_urls=False) for source in sources
    ]
    for file in all_of_them:
        if file.src_uri.endswith(".ipynb"):  # as mkdocs-jupyter makes them
            file.dest_uri = file.url = file.src_uri.replace(".ipynb", ".html")
    return files_of_mkdocs.Files(all_of_them)


def shown(hook: Any, html: str, source: str, *others: str) -> str:
    files = pages(source, *others)
    page = SimpleNamespace(file=files.get_file_from_path(source))
    text: str = hook.on_page_content(html, page=page, config=None, files=files)
    return text


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code: list[str] = []
        self._in_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "pre" and self.tags[-2][1].get("class") == "highlight":
            self._in_code = True
            self.code.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_code = self._in_code and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._in_code:
            self.code[-1] += data


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_stay_and_nothing_loads_from_elsewhere(hook: Any, path: Any) -> None:
    html = convert.nb2html(str(path), custom_mathjax_url="https://elsewhere.example/mathjax.js")
    assert "<script" in html and len(html) > 500_000, "the hook is not needed any more"
    others = {
        file.relative_to(ROOT / "docs").as_posix()
        for kind in ("md", "ipynb")
        for file in (ROOT / "docs").rglob(f"*.{kind}")
    }
    source = path.relative_to(ROOT / "docs").as_posix()
    page = _Page(shown(hook, html, source, *sorted(others - {source})))
    assert not [attributes for _, attributes in page.tags if (attributes.get("class") or "").startswith("cell")]
    assert not {tag for tag, _ in page.tags} & {"script", "style", "link", "iframe", "clipboard-copy"}
    sources = [attributes["src"] or "" for _, attributes in page.tags if "src" in attributes]
    assert not [source for source in sources if not source.startswith(("data:image/png;base64,", "../images/"))]
    assert page.code == [cell["source"] for cell in code_cells(read(path))]
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert links and not [link for link in links if re.search(r"\.(md|ipynb)\b", link)]


CELLS = '<style>x</style><div class="jupyter-wrapper"><p>{}</p></div> <!-- jupyter-wrapper --><script>y</script>'


def test_links_lead_to_pages(hook: Any, caplog: pytest.LogCaptureFixture) -> None:
    links = (
        '<a href="../how-to/a.md#b">1</a> <a href="c.ipynb">2</a> <a href="https://e.org/d.md">3</a> <a href="#e">4</a>'
    )
    with caplog.at_level(logging.WARNING):
        text = shown(hook, CELLS.format(links), "tutorials/n.ipynb", "tutorials/c.ipynb", "how-to/a.md")
    assert re.findall('href="([^"]*)"', text) == ["../how-to/a.html#b", "c.html", "https://e.org/d.md", "#e"]
    assert not caplog.records


def test_a_link_that_leads_nowhere_is_a_warning_of_mkdocs(hook: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shown(hook, CELLS.format('<a href="gone.md">1</a>'), "tutorials/n.ipynb")
    (record,) = caplog.records
    assert record.name.startswith("mkdocs.") and "tutorials/n.ipynb has a link to gone.md" in record.message


def test_other_pages_are_left_alone(hook: Any) -> None:
    files = pages("index.md")
    page = SimpleNamespace(file=files.get_file_from_path("index.md"))
    assert hook.on_page_content("<script>", page=page, config=None, files=files) is None


def test_another_form_of_page_is_an_error(hook: Any) -> None:
    with pytest.raises(ValueError, match=r"n\.ipynb: mkdocs-jupyter writes its pages in another way now"):
        shown(hook, "<main></main>", "tutorials/n.ipynb")
