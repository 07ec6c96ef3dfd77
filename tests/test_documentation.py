"""The documentation is true: every Python block of README.md and docs/ runs, and prints what the page says.

The blocks of one page run in order, in one namespace and in an empty folder that holds the model folder "gpt2".
The namespace has what a reader of the page would bring along, see `what_a_reader_has`. A block is left out only by
a line ``<!-- not run: reason -->`` before it. A text block after a line ``<!-- output -->`` is what the Python block
before it prints; after ``<!-- output ends with -->``, the last lines of that.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_crow_lightning.metrics.one_pass.in_numba import choice
from tests.models import WIDTH, Module, llama, loader, token_data
from tests.pages import blocks
from tests.tiny_gpt2 import save_gpt2

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COLUMNS = 88  # of code
INDEX = ROOT / "docs" / "index.md"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def what_a_reader_has() -> dict[str, Any]:
    """``module``, a LightningModule around a language model of 4 blocks, and its data; ``v``, a direction in it."""
    torch.manual_seed(0)
    data = token_data(count=24)
    return {
        "module": Module(llama()),
        "train_loader": loader(data[:16]),
        "val_loader": loader(data[16:20]),
        "test_loader": loader(data[16:20]),
        "predict_loader": loader(data[20:]),
        "v": torch.randn(WIDTH),
    }


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.filterwarnings("ignore::mi_crow_lightning.warnings.AlarmWarning")  # pages about alarms let them fire
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text("utf-8")], ids=name_of)
def test_the_blocks_of_a_page_run(page, gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choice, "choice", lambda: choice.Choice(None, choice.NOT_INSTALLED))  # no extra is installed
    monkeypatch.chdir(tmp_path)
    shutil.copytree(gpt2, "gpt2")
    namespace = {"__name__": page.stem, **what_a_reader_has()}
    for block in blocks(page):
        if block.language != "python" or block.not_run:
            continue
        capsys.readouterr()
        # Lines are counted as in the page, so that a traceback leads there.
        exec(compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True), namespace)
        if not block.printed(out := capsys.readouterr().out):
            assert out == block.output, f"printed by the block at line {block.line} of {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_seen(page):
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == sum(2 + 2 * (block.output is not None) for block in blocks(page)), "a fence is not closed"
    assert page.read_text(encoding="utf-8").count("<!-- not run") == sum(bool(b.not_run) for b in blocks(page))
    assert page.read_text(encoding="utf-8").count("<!-- output") == sum(b.output is not None for b in blocks(page))


def test_internal_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|py|txt))(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_every_module_directly_in_hooks_has_an_entry_in_the_api_reference():
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "reference" / "api").glob("*.md"))
    entries = set(re.findall(r"^::: (mi_crow_lightning\.hooks\.\w+)$", pages, re.MULTILINE))
    modules = {path.stem for path in (ROOT / "mi_crow_lightning" / "hooks").glob("*.py")} - {"__init__"}
    assert {f"mi_crow_lightning.hooks.{name}" for name in modules} == entries


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_narrow(page):
    """It shows on a page without scrolling; `ruff.toml` in the folders of docs/ lets ruff wrap it."""
    lines = [line for block in blocks(page) if block.language != "text" for line in block.code.splitlines()]
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").rglob("*.ipynb")), ids=name_of)
def test_code_of_notebooks_is_narrow(notebook):
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_every_page_is_in_the_navigation():
    in_nav = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert in_nav == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md"}


def test_the_first_page_of_the_documentation_has_the_block_of_the_readme():
    first, page = ([block for block in blocks(file) if block.language == "python"] for file in (PAGES[0], INDEX))
    assert [block._replace(line=0) for block in first] == [block._replace(line=0) for block in page]
