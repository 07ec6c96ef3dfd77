"""Short names of hooks on a command line, in a process that imports LightningCLI and then the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
