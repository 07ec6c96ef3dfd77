"""Planted faults are named at their layer and step, and clean runs raise no alarm, with the rules at their defaults.

``make alarms`` runs all 20 faults and 20 clean runs of 200 steps; ``make test`` a sample of them.
"""

from __future__ import annotations

import pytest

from mi_crow_lightning.alarms import Alarm, NonFinite
from tests.alarms.planted import CLEAN, FAULTS, named, run_clean, run_fault

# Lightning says what a tiny run lacks; the package says at the end that a controller changed nothing.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SAMPLE = ["NaN in a block, forward", "NaN in a block, backward", "dead ReLU", "a controller without effect"]
SEEDS = (5, 6, 7, 8)


def test_there_are_as_many_as_promised() -> None:
    assert len(FAULTS) == 20 and len(CLEAN) * len(SEEDS) == 20


@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_is_named(name: str) -> None:
    fired = run_fault(FAULTS[name], seed=50)
    assert named(FAULTS[name], fired), fired


def test_the_trial_would_see_a_silent_alarm() -> None:
    fault = FAULTS["dead ReLU"]
    assert not named(fault, run_fault(fault, 50, [Alarm(NonFinite(), "log")]))


def test_a_clean_run_is_silent() -> None:
    assert run_clean("cnn", 50, steps=60) == []


@pytest.mark.alarms
@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named(name: str) -> None:
    fired = run_fault(FAULTS[name], seed=200 + list(FAULTS).index(name))
    assert named(FAULTS[name], fired), fired


@pytest.mark.alarms
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CLEAN)
def test_every_clean_run_is_silent(kind: str, seed: int) -> None:
    assert run_clean(kind, seed) == []
