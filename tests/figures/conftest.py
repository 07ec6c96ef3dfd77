"""Figures need matplotlib."""

import pytest

pytest.importorskip("matplotlib")
