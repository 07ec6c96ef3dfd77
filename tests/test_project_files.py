"""The files around the package agree with one another: versions, Pythons, targets, addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
GUIDES = ["README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_page_of_installing_lists_the_extras_that_users_have() -> None:
    found = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([a-z]+) = \[", found, re.MULTILINE)) - {"dev", "docs", "loggers"}
    listed = re.findall(r"^\| `([a-z]+)` \|", text("docs/how-to/install.md"), re.MULTILINE)
    assert sorted(listed) == sorted(extras)


def test_the_citation_is_of_this_version() -> None:
    version = re.search(r'^version = "([^"]+)"', PROJECT, re.MULTILINE)[1]
    cited = yaml.safe_load(text("CITATION.cff"))
    assert str(cited["version"]) == version and f"## [{version}]" in text("CHANGELOG.md")
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= cited.keys()
    assert " AND ".join(cited["license"]) == re.search(r'^license = "([^"]+)"', PROJECT, re.MULTILINE)[1]


def test_every_python_that_is_named_stands_in_the_workflow() -> None:
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", PROJECT)
    steps = WORKFLOW["jobs"]["everything"]["steps"]
    (tested,) = {step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})}
    others = WORKFLOW["jobs"]["others"]["strategy"]["matrix"]["python"]
    assert sorted(named) == sorted([tested, *others]) and tested == "3.11"
    assert re.search(r'^requires-python = ">=(.+)"$', PROJECT, re.MULTILINE)[1] == min(named, key=lambda v: int(v[2:]))


def test_what_has_never_run_says_so() -> None:
    jobs = {name: job for name, job in WORKFLOW["jobs"].items() if name != "everything"}
    assert len(jobs) == 2
    for job in jobs.values():
        assert job["continue-on-error"] is True and "(not run yet)" in job["name"]


def test_the_torch_of_the_workflow_is_the_pinned_one() -> None:
    assert f"torch=={WORKFLOW['env']['TORCH']}\n" in text("constraints.txt")


@pytest.mark.parametrize("name", ["constraints-oldest.txt", "constraints-oldest-torch.txt"])
def test_the_oldest_versions_are_the_lower_bounds(name: str) -> None:
    bounds = dict(re.findall(r'^  "([a-z-]+)>=([\d.]+)",$', PROJECT, re.MULTILINE))
    pins = dict(re.findall(r"^([a-z-]+)==(\S+)$", text(name), re.MULTILINE))
    named = {"transformers", "lightning", "huggingface-hub"} | ({"torch"} if "torch" in name else set())
    assert named <= pins.keys() <= bounds.keys()
    assert {one: pin.removesuffix(".0") for one, pin in pins.items()} == {
        one: bounds[one].removesuffix(".0") for one in pins
    }


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_what_the_oldest_versions_leave_out_is_there() -> None:
    command = ["make", "--silent", "--eval=shown:;@echo $(NOT_WITH_OLDEST)", "shown"]
    left_out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(left_out) == len(set(left_out)) > 50
    assert [name for name in left_out if not (ROOT / name).is_file()] == []
    (test,) = set(re.findall(r"--deselect=(\S+)::(\w+)", text("Makefile")))
    assert f"def {test[1]}(" in text(test[0])


@pytest.mark.parametrize("name", GUIDES)
def test_the_targets_that_a_guide_names_are_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):(?!=)", text("Makefile"), re.MULTILINE))
    named = {
        target
        for found in re.findall(r"(?:^|`| )make ((?:[a-z-]+ ?)+)", text(name), re.MULTILINE)
        for target in found.split()[:1]
    }
    assert named - targets == set()


@pytest.mark.parametrize("name", GUIDES)
def test_the_links_of_a_guide_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(name))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a checkout")
def test_no_file_invents_an_address_of_the_repository() -> None:
    pattern = r"(github|gitlab|codeberg|bitbucket)\.[a-z]+[:/][A-Za-z0-9_.-]+/mi[-_]crow[-_]lightning"
    found = subprocess.run(["git", "grep", "-nEI", pattern], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1, found.stdout


def test_the_hooks_before_a_commit_call_tools_of_make_setup() -> None:
    hooks = [hook for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff"] * 2 + [
        ".venv/bin/mypy",
        ".venv/bin/lint-imports",
    ]
    assert all(hook["entry"].split()[0] in text("Makefile").replace("$(BIN)", ".venv/bin") for hook in hooks)


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_links_in_fences_stay_and_pictures_of_elsewhere_too() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = "[a](docs/a.md#x) ![p](p.png) [b](https://b.org)\n```python\nx[0](y)\n```\n[c\nd](e.md) [f](#g)\n"
    assert module.with_absolute_links(given, "", "v1") == (
        "a  [b](https://b.org)\n```python\nx[0](y)\n```\nc\nd [f](#g)\n"
    )
    assert module.with_absolute_links(given, "https://r.org/r", "v1") == (
        "[a](https://r.org/r/blob/v1/docs/a.md#x) ![p](https://r.org/r/raw/v1/p.png) [b](https://b.org)\n"
        "```python\nx[0](y)\n```\n[c\nd](https://r.org/r/blob/v1/e.md) [f](#g)\n"
    )
