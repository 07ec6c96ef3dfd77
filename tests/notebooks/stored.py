"""The notebooks of the documentation as their files are: plain JSON, read without Jupyter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))

Cell: TypeAlias = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The notebook, where each text is one string and not a list of lines."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = joined(cell["source"])
    return notebook


def joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def faults(notebook: dict[str, Any]) -> list[str]:
    """What went wrong in a run: errors, and all that went to standard error, where warnings go, or that rich shows."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"code cell {number}: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"code cell {number} wrote to standard error: {joined(output['text'])}")
            elif re.search(r"Warning: ", text := joined(output.get("data", {}).get("text/plain", ""))):
                found.append(f"code cell {number} shows a warning: {text}")
    return found


def shown(cell: Cell) -> list[tuple[str, str]]:
    """What a cell shows, by kind, without what differs from machine to machine.

    Numbers are masked, with the width of the columns around them, and pictures left out. Of a cell with the tag
    "varies", such as one that generates text, only the kinds stay.
    """
    varies = "varies" in cell["metadata"].get("tags", ())
    parts: list[tuple[str, str]] = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            parts.append((output["name"], output["text"]))
        else:
            parts += sorted(output.get("data", {}).items())
    return [(kind, "" if varies or kind.startswith("image/") else masked(joined(text))) for kind, text in parts]


def masked(text: str) -> str:
    """A text in which all numbers are alike.

    >>> masked("rms    2.5e-07\\n       12.0 at step  3") == masked("rms 17\\n0.1 at step 12")
    True
    """
    number = r"(?<![\w.])[-+]?((\d{1,3}(,\d{3})+|\d+)(\.\d+|\.(?=[,)\]]))?(e[-+]?\d+)?|nan|inf)(?!\w)"
    return re.sub(r"[\s─━-]+", " ", re.sub(number, "#", text)).strip()
