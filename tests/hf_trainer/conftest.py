"""What each test of ``transformers.Trainer`` leaves alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Take back what TrainingArguments write there: the precision and the compiler of all later Trainers."""
    with mock.patch.dict(os.environ):
        yield
