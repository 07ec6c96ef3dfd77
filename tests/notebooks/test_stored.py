"""The notebooks' files: run in order, without a fault, small, and nothing in them of the machine that ran them.

`test_executed` runs them again.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks.stored import NOTEBOOKS, ROOT, code_cells, faults, joined, masked, read, shown

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST_BYTES = 400_000
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_there_are_notebooks() -> None:
    expected = {"coming_from_mi_crow", "extract_and_steer", "watch_a_fine_tune", "what_a_fine_tune_becomes"}
    assert {path.stem for path in NOTEBOOKS} == expected


@each_notebook
def test_it_is_valid(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert nbformat.writes(notebook) + "\n" == path.read_text(encoding="utf-8"), "call docs/notebooks.py"


@each_notebook
def test_its_cells_ran_in_order_and_without_a_fault(path: Path) -> None:
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "call docs/notebooks.py"
    assert not faults(notebook)
    assert any(cell["outputs"] for cell in cells)


@each_notebook
def test_nothing_in_it_is_of_a_machine(path: Path) -> None:
    notebook, text = read(path), path.read_text(encoding="utf-8")
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
    places = re.findall(r"(?<![\w.:/])/(?:tmp|home|root|usr|opt|work|Users|var)/\S*|[A-Z]:\\\\\S*", text)
    assert not places, "a path of the machine that ran it"
    assert not re.findall(r"\b0x[0-9a-f]{8,}|\b20\d\d-\d\d-\d\d", text), "an address or a date"


@each_notebook
def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_words_come_before_each_cell(path: Path) -> None:
    kinds = [cell["cell_type"] for cell in read(path)["cells"]]
    assert kinds[0] == "markdown"
    assert ("code", "code") not in pairwise(kinds)


@each_notebook
def test_its_links_lead_somewhere(path: Path) -> None:
    links = [
        link for cell in read(path)["cells"] if cell["cell_type"] == "markdown" for link in LINK.findall(cell["source"])
    ]
    assert links
    assert not [link for link in links if not (path.parent / link).is_file()]


@each_notebook
def test_it_is_in_the_navigation_and_on_the_first_page(path: Path) -> None:
    name = path.relative_to(ROOT / "docs").as_posix()
    assert f": {name}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"]({name})" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


# The comparison itself.


def cell(*outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"cell_type": "code", "source": "", "metadata": {"tags": list(tags)}, "outputs": list(outputs)}


def printed(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("loss 3.25.", "loss 17."),
        ("tensor([1., 2.])", "tensor([1.5, 2000.])"),
        ("[1, 2e-07]", "[-1.5, 24,785.0]"),
        ("nan at step 3", "0.5 at step 12"),
        ("a      1.0\nb  2", "a  10.25\nb  2"),
        ("<td>1.0</td>", "<td>-2</td>"),
    ],
)
def test_numbers_are_alike(one: str, other: str) -> None:
    assert masked(one) == masked(other)
    assert shown(cell(printed(one))) == shown(cell(printed(other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [("rms 1.0", "std 1.0"), ("layers.3", "layers.4"), ("[1, 2]", "[1]"), ("block:4", "block 4"), ("finance", "nan")],
)
def test_words_are_not(one: str, other: str) -> None:
    assert shown(cell(printed(one))) != shown(cell(printed(other)))
    assert shown(cell(printed(one), tags=("varies",))) == shown(cell(printed(other), tags=("varies",)))


def test_kinds_are_compared() -> None:
    figure = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBO", "text/plain": ["<Figure>"]}}
    words = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": ["<Figure>"]}}
    assert shown(cell(figure)) != shown(cell(words))
    assert shown(cell(figure)) == shown(cell({**figure, "data": {**figure["data"], "image/png": "other"}}))
    assert shown(cell(printed("a"), tags=("varies",))) != shown(cell(tags=("varies",)))


def test_faults_are_found() -> None:
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    warning = {"output_type": "stream", "name": "stderr", "text": ["a.py:1: UserWarning: careful\n"]}
    of_rich = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "a.py:2: UserWarning: careful"}}
    assert faults({"cells": [cell(printed("fine")), cell(error, warning), cell(of_rich)]}) == [
        "code cell 2: ValueError: no",
        "code cell 2 wrote to standard error: a.py:1: UserWarning: careful\n",
        "code cell 3 shows a warning: a.py:2: UserWarning: careful",
    ]
    assert joined(["a", "b"]) == "ab"
