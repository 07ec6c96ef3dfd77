"""A fixture for tests that compile: no graph is left from before, and none is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    """Begin and end a test of the module that imports this with no graph compiled."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
