"""Notebooks run as a reader runs them: a fresh kernel, an empty folder, no hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.notebooks.stored import ROOT

if TYPE_CHECKING:
    from nbformat import NotebookNode

LONGEST = 600  # seconds of one cell

# Lines on standard error that depend on the machine, or on what else a reader has installed. Lightning writes them.
_EXPECTED = re.compile(
    r"(GPU available|TPU available|💡 Tip: |`Trainer\.(fit|validate|test|predict)` stopped: |Seed set to ).*"
    r"|.*(`isinstance\(treespec, LeafSpec\)` is deprecated|does not have many workers).*"
)


def executed(path: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of now, and with nothing in it of this machine or this minute.

    Args:
        path: of the file, which stays as it is.
        folder: an empty one.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    working = folder / "working"
    working.mkdir()
    client = NotebookClient(
        notebook,
        timeout=LONGEST,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        allow_errors=True,  # all faults at once, see `stored.faults`
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(working)}},
    )
    client.execute(env=_environment(folder / "ipython"))
    return stable(notebook)


def _environment(settings: Path) -> dict[str, str]:
    """Return variables for the kernel: this checkout, nobody's settings, and no progress bars."""
    settings.mkdir()
    known = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "MPLCONFIGDIR")}
    return {
        **known,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm without ipywidgets
        "IPYTHONDIR": str(settings),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",  # numbers and texts depend on it
    }


def stable(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what the kernel or an editor left, and without the lines that are expected."""
    notebook.nbformat_minor = 5
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_stable, cell.outputs) if output.get("text") != ""]
    return notebook


def _stable(output: NotebookNode) -> NotebookNode:
    if "metadata" in output:
        output.metadata = {}
    if output.get("name") == "stderr":
        lines = output.text.splitlines(keepends=True)
        output.text = "".join(line for line in lines if not _EXPECTED.fullmatch(line.strip("\n")))
    return output
