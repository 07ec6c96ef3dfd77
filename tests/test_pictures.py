"""The pictures of the documentation: each is made by a script, shown by a page that says what it shows, and small."""

import ast
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = ("pictures.py", "figures.py")
MOST = 100_000  # bytes


def made() -> set[str]:
    """The names of images in the scripts."""
    trees = [ast.parse((DOCS / script).read_text(encoding="utf-8")) for script in SCRIPTS]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and text.endswith(".png")}


def shown() -> dict[str, str]:
    """What is said beside each image of a page."""
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    found = [re.findall(r"!\[([^\]]*)\]\((\S+)\)", page.read_text(encoding="utf-8")) for page in pages]
    return {
        Path(target).name: said
        for of_page in found
        for said, target in of_page
        if "docs/images" in target or "../images" in target
    }


def test_scripts_make_what_pages_show() -> None:
    there = {file.name for file in (DOCS / "images").iterdir()}
    assert made() == there == set(shown())
    assert all(len(said) > 20 for said in shown().values())


def test_pictures_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in (DOCS / "images").iterdir()}
    assert {name: size for name, size in sizes.items() if size > MOST} == {}
