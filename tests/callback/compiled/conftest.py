"""Each test begins and ends with no graph compiled."""

from tests.fresh_graphs import fresh_graphs

__all__ = ["fresh_graphs"]
