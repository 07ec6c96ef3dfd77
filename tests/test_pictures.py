"""The pictures of the documentation: each is made by a script, shown by a page that says what it shows, and small."""

import ast
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = ("pictures.py", "figures.py", "diagrams.py")
MOST = 100_000  # bytes


def made() -> set[str]:
    """The names of images in the scripts."""
    trees = [ast.parse((DOCS / script).read_text(encoding="utf-8")) for script in SCRIPTS]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and re.fullmatch(r"\w+\.(png|svg)", text)}


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


@pytest.fixture(scope="module")
def diagrams() -> Any:
    """The script of the diagrams."""
    spec = spec_from_file_location("diagrams", DOCS / "diagrams.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_diagrams_are_those_of_their_script(diagrams: Any) -> None:
    for name, draw in diagrams.DIAGRAMS.items():
        assert (DOCS / "images" / name).read_text(encoding="utf-8") == draw(), f"run docs/diagrams.py: {name} is old"


def test_text_of_diagrams_stays_in_its_box(diagrams: Any) -> None:
    of_letter = 6.8  # pixels of width, on average, in the widest of usual fonts
    for name, draw in diagrams.DIAGRAMS.items():
        box: dict[str, float] = {}
        for element in ElementTree.fromstring(draw()):
            kind = element.tag.rpartition("}")[2]
            if kind == "rect":
                box = {side: float(element.attrib[side]) for side in ("x", "y", "width", "height")}
                assert box["x"] + box["width"] <= diagrams.WIDTH
            if kind == "text":
                right = float(element.attrib["x"]) + of_letter * len(element.text or "")
                assert right <= box["x"] + box["width"], f"{name}: {element.text}"
                assert box["y"] < float(element.attrib["y"]) < box["y"] + box["height"], f"{name}: {element.text}"
