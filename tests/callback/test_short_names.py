"""Short names of hooks on a command line, in a process that imports LightningCLI and then the package."""

from __future__ import annotations

import json
import subprocess
import sys
from inspect import isclass
from pathlib import Path

import pytest

import mi_crow_lightning as mcl

pytest.importorskip("jsonargparse")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.callback.program_short_names"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_without_the_package_nobody_knows_its_names(found: dict[str, str]) -> None:
    assert not found["imported before"] and "HookCallback" in found["before"] and "rror" in found["before"]


def test_one_full_name_is_enough(found: dict[str, str]) -> None:
    assert found["full"] == "['ActivationStatistics', 'ScaleController']"


def test_once_it_is_imported_short_names_do(found: dict[str, str]) -> None:
    assert found["after"] == "['ActivationStatistics', 'ScaleController']"


def test_the_help_lists_the_hooks_that_there_are(found: dict[str, str]) -> None:
    detectors = found["help"].partition("hooks that observe.")[2].partition("hooks that change activations.")[0]
    for name in ("ActivationStatistics", "GradientStatistics", "TraitMonitor", "ContrastDetector"):
        assert name in detectors, detectors
    assert "mi_crow_lightning.SteeringController" in found["help"] and "alarms" in found["help"]


def known(text: str) -> set[str]:
    """The classes that a help lists first."""
    listed = text.partition("known subclasses: ")[2].partition(")")[0]
    return {name.rpartition(".")[2] for name in listed.split(", ")}


def test_the_help_lists_only_what_can_be_made(found: dict[str, str]) -> None:
    hooks = [one for name in mcl.__all__ if isclass(one := getattr(mcl, name)) and issubclass(one, mcl.Hook)]
    abstract = {mcl.Hook, mcl.Detector, mcl.SummingDetector, mcl.Controller, mcl.TokenController}
    assert known(found["help"]) == {one.__name__ for one in hooks if one not in abstract} | {"Own"}
    assert "Threshold" in known(found["help of an alarm"]) and "Rule" not in known(found["help of an alarm"])


def test_a_base_class_that_is_named_is_refused(found: dict[str, str]) -> None:
    assert 'Parser key "detectors"' in found["a base"] and "is abstract" in found["a base"]
