"""Every power of two, and the numbers beside it, in the bin that python's own frexp says."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from mi_crow_lightning.metrics import log2_bins
from mi_crow_lightning.metrics.log2_bins import BINS, EDGES, count_bins

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def bin_of(value: float) -> int:
    """The bin's number, where 32 is the one around zero."""
    exponent = math.frexp(value)[1] - 1  # 2**exponent <= |value| < 2**(exponent + 1)
    if value == 0 or exponent < -18:
        return 32
    steps = min(exponent, 13) + 19
    return 32 + steps if value > 0 else 32 - steps


@pytest.mark.parametrize("dtype", DTYPES)
def test_bins_at_powers_of_two_and_beside_them(dtype: torch.dtype) -> None:
    for edge in EDGES:
        x = torch.tensor(edge, dtype=dtype)
        for value in (x, torch.nextafter(x, torch.zeros_like(x)), torch.nextafter(x, x * 2)):
            assert count_bins(value).nonzero().tolist() == [[bin_of(value.item())]], value.item()


def test_edges_ascend_and_mirror() -> None:
    assert len(EDGES) == BINS + 1
    assert all(a < b for a, b in pairwise(EDGES))
    assert tuple(-edge for edge in reversed(EDGES)) == EDGES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_accelerator_count_is_the_cpu_count(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = count_bins(x)
    monkeypatch.setattr(log2_bins, "_count_keys", log2_bins._count_in_lanes)
    assert torch.equal(count_bins(x), expected)
    assert expected.sum() == 3000
