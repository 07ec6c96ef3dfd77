"""Fuzz tests: a few seconds each in `make test`, and minutes of them in `make fuzz`.

A test that hypothesis gives its values is one when it is marked ``fuzz``. Its ``@settings(max_examples=...)`` bounds it
in `make test`. Where ``FUZZ_MINUTES`` is set, the tests of the run share those minutes: each is called again and again,
with other values each time, until its share is over or an example fails. One that hangs is stopped by its timeout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator

import pytest
from hypothesis import settings

_AFTER_THE_SHARE = 120  # seconds that the last call may take beyond it
_SHARE = pytest.StashKey[float]()

# On a busy machine an example takes as long as it takes. Other values each time, also where `CI` is set.
settings.register_profile("usual", deadline=None)
settings.register_profile("fuzz", deadline=None, derandomize=False, print_blob=True)


def minutes() -> float:
    """The minutes that the fuzz tests of this run share; 0 in a usual run."""
    return float(os.environ.get("FUZZ_MINUTES") or 0)


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fuzzed = [item for item in items if item.get_closest_marker("fuzz")]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for item in fuzzed if minutes() else []:
        item.stash[_SHARE] = share = minutes() * 60 * processes / len(fuzzed)
        item.add_marker(pytest.mark.timeout(share + _AFTER_THE_SHARE))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Call the test once, and a fuzz test until its share of the minutes is over."""
    end = time.monotonic() + pyfuncitem.stash.get(_SHARE, 0.0)
    result = yield
    while time.monotonic() < end:
        pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    return result
