"""The two distributions, built once for all tests, and an environment that holds the wheel and what it declares."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import BytesParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    return built(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody has who took the sdist: no git, no checkout."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="session")
def wheel(unpacked_sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as an index makes it: from the sdist, not from the tree."""
    return built(unpacked_sdist, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def bare_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scripts of an environment that holds the wheel and what it declares, and nothing else.

    What it declares is linked from this environment, as torch alone would take minutes to download.
    """
    python = environment(tmp_path_factory.mktemp("environments") / "bare", "--without-pip")
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    link_declared(wheel, Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, env={**os.environ, "PYTHONPATH": ""})
    return python.parent


def built(source: Path, kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=source)
    (file,) = folder.iterdir()
    return file


def environment(folder: Path, *options: str) -> Path:
    """Make an empty environment, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", *options, str(folder)], check=True)
    return next(folder.glob("bin/python")) if os.name != "nt" else folder / "Scripts" / "python.exe"


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def declared(wheel: Path) -> set[str]:
    """The names of the distributions that an installer would bring, here and now."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in metadata(wheel).get_all("Requires-Dist", [])]
    waiting = [one for one in waiting if one.marker is None or one.marker.evaluate({"extra": ""})]
    while waiting:
        one = waiting.pop()
        try:
            its = distribution(one.name)
        except PackageNotFoundError:
            continue  # such as the CUDA libraries beside a CPU build of torch
        key = canonicalize_name(its.metadata["Name"])
        wanted = [Requirement(text) for text in its.requires or []]
        extras = ["", *one.extras]
        if key not in found or one.extras:
            found.add(key)
            waiting += [
                new
                for new in wanted
                if (new.marker is None or any(new.marker.evaluate({"extra": extra}) for extra in extras))
                and canonicalize_name(new.name) not in found
            ]
    return found


def link_declared(wheel: Path, packages: Path) -> None:
    for name in declared(wheel):
        its = distribution(name)
        tops = {file.parts[0] for file in its.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            source, link = Path(its.locate_file(top)).resolve(), packages / top
            if not link.exists():
                link.symlink_to(source, target_is_directory=source.is_dir())


def run(scripts: Path, name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(scripts / name), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran
