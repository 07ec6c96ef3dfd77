"""Merging: any split of the elements, in any order, gives the row of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_crow_lightning.metrics.activation import summarize
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, empty_rows, merge, merge_all

SPECIAL = [0.0, -0.0, 1e-40, math.inf, -math.inf, math.nan, 1.0, -2.0, 2.0**14, 2.0**-18]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


finite = st.floats(-1e6, 1e6, width=32)
elements = st.one_of(finite, st.sampled_from(SPECIAL))


@st.composite
def splits(draw: st.DrawFn) -> list[list[float]]:
    """Chunks, some of them empty, in any order."""
    return draw(st.lists(st.lists(elements, max_size=12), min_size=1, max_size=8))


def assert_same(row: Tensor, whole: Tensor) -> None:
    """Equal, within rounding where it is a sum of fractions; the tokens are not those of one activation."""
    rounded = {Row.MEAN: 1, Row.M2: 2, Row.M3: 3, Row.M4: 4}
    exact = [i for i in range(ROW_SIZE) if i not in (*rounded, Row.TOKENS, Row.NORM_SUM, Row.NORM_MAX, Row.CHANNELS)]
    assert torch.equal(row[exact], whole[exact])
    scale = max(abs(whole[Row.MINIMUM]), abs(whole[Row.MAXIMUM])) if whole[Row.COUNT] else 1.0
    for field, power in rounded.items():
        torch.testing.assert_close(row[field], whole[field], rtol=1e-10, atol=float(1e-11 * scale**power))


def fold(rows: list[Tensor]) -> Tensor:
    total = empty_rows(1)[0]
    for row in rows:
        total = merge(total, row)
    return total


@settings(max_examples=150)
@given(splits(), st.randoms(use_true_random=False))
def test_any_split_merges_to_the_whole(chunks: list[list[float]], random: Random) -> None:
    tensors = [torch.tensor(chunk, dtype=torch.float64) for chunk in chunks]
    whole = summarize(torch.cat(tensors))
    random.shuffle(tensors)
    rows = [summarize(t) for t in tensors]
    assert_same(fold(rows), whole)
    assert_same(merge_all(torch.stack(rows)), whole)


@settings(max_examples=60)
@given(st.lists(elements, max_size=12), st.sampled_from([1.0, 1e60]))
def test_an_empty_row_is_neutral(chunk: list[float], scale: float) -> None:
    row, empty = summarize(torch.tensor(chunk, dtype=torch.float64) * scale), empty_rows(1)[0]
    for merged in (merge(row, empty), merge(empty, row), merge_all(torch.stack([empty, row, empty]))):
        assert torch.equal(merged, row)


def test_merges_row_by_row_and_leaves_its_inputs() -> None:
    a, b = (torch.stack([summarize(normal(9, seed=s + i)) for i in range(3)]) for s in (0, 10))
    copies = a.clone(), b.clone()
    merged = merge(a, b)
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])
    for i in range(3):
        assert_same(merged[i], summarize(torch.cat([normal(9, seed=i), normal(9, seed=10 + i)])))


@pytest.mark.parametrize(
    "call",
    [
        lambda: merge(torch.zeros(2, ROW_SIZE), torch.zeros(3, ROW_SIZE)),
        lambda: merge(torch.zeros(2), torch.zeros(2)),
        lambda: merge_all(torch.zeros(0, ROW_SIZE)),
        lambda: merge_all(torch.zeros(ROW_SIZE)),
    ],
)
def test_refuses_what_is_not_rows(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"rows?\b.*\d"):
        call()
