"""README and the first tutorial run from the built wheel by copy and paste, in an environment of nothing else."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributions import environment
from tests.pasted import PAGES, ROOT, a_readers, follow, logdirs, shown_runs

# TensorBoard 2.20 imports pkg_resources of setuptools, which is not among its dependencies.
STARTS = not version("tensorboard").startswith("2.20.") or find_spec("pkg_resources") is not None


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_by_copy_and_paste(name: str, bare_environment: Path, tmp_path: Path) -> None:
    python, folder = bare_environment / "python", tmp_path / "empty"
    folder.mkdir()
    assert follow(ROOT / name, python, folder)
    (logdir,) = logdirs(ROOT / name)
    assert list((folder / logdir).glob("**/events.out.tfevents.*"))
    if STARTS and name == "README.md":
        assert any(run.endswith("version_0") for run in shown_runs(folder / logdir, python))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nprint(1 / 0)\n```\n", "ZeroDivisionError"),
        (
            "```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n",
            "page.md says\n2\n\nand this was printed:\n1",
        ),
        ("```python\nimport mi_crow_lightning\n```\n", "ModuleNotFoundError: No module named 'mi_crow_lightning'"),
    ],
)
def test_a_page_that_does_not_run_is_found(page: str, message: str, tmp_path: Path) -> None:
    python = environment(tmp_path / "nothing", "--without-pip")
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError) as caught:
        follow(tmp_path / "page.md", python, tmp_path / "empty")
    assert message in str(caught.value)


def test_no_checkout_is_at_hand(bare_environment: Path, tmp_path: Path) -> None:
    script = "import mi_crow_lightning as package; print(package.__file__)"
    command = [str(bare_environment / "python"), "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=a_readers())
    assert Path(ran.stdout.strip()).is_relative_to(bare_environment.parent)
