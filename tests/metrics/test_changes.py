"""Sizes of edits against numpy in float64, and their sums by stage."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_crow_lightning.metrics import changes_of_few
from mi_crow_lightning.metrics.changes import EffectSums, EffectValues, changed_tokens, measure_change, merge_changes
from mi_crow_lightning.metrics.collectives import exchange


@pytest.fixture(autouse=True, scope="module", params=["few", "many"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Add every edit as one of a few tokens, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes_of_few, "_FEW", 10_000 if request.param == "few" else 0)
        yield request.param


def numpys(*edits: tuple[Tensor, Tensor]) -> EffectValues:
    tokens, fired, ratios = 0, 0, []
    for before, after in edits:
        x, y = (one.double().numpy().reshape(-1, one.shape[-1]) for one in (before, after))
        fired += bool((x != y).any())
        for one, other in zip(x, y, strict=True):
            if (one != other).any():
                tokens += 1
                if np.linalg.norm(one) > 0:
                    ratios.append(np.linalg.norm(other - one) / np.linalg.norm(one))
    mean, largest = (np.mean(ratios), max(ratios)) if ratios else (math.nan, math.nan)
    return EffectValues(tokens, fired, mean, largest)


def read(*edits: tuple[Tensor, Tensor]) -> EffectValues:
    sums = EffectSums(1, torch.device("cpu"))
    for edit in edits:
        sums.add("predict", 0, *edit)
    (values,) = sums.take("predict")
    assert sums.totals("predict") == [values]
    return values


def assert_equal(found: EffectValues, expected: EffectValues, tolerance: float = 1e-5) -> None:
    assert (found.tokens, found.fired) == (expected.tokens, expected.fired)
    assert found[2:] == pytest.approx(expected[2:], rel=tolerance, nan_ok=True)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=5), st.integers(0, 10_000))
def test_edits_add_up(sizes: list[tuple[int, int]], seed: int) -> None:
    generator, edits = torch.Generator().manual_seed(seed), []
    for rows, tokens in sizes:
        x = torch.randn(rows, tokens, 6, generator=generator)
        x[torch.rand(rows, tokens, generator=generator) < 0.2] = 0
        some = torch.rand(rows, tokens, 6, generator=generator) < 0.1
        edits.append((x, torch.where(some, x + torch.randn(rows, tokens, 6, generator=generator), x)))
    assert_equal(read(*edits), numpys(*edits))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3), (torch.float64, 1e-12)]
)
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.where(torch.arange(4)[:, None] > 1, x * 1.5, x)
    assert_equal(read((x, y)), numpys((x, y)), tolerance)


def test_the_smallest_change_counts_and_a_zeros_sign_does_not() -> None:
    x = torch.full((4, 8), 1e-20)
    x[3] = -0.0
    y = x.clone()
    y[1, 0], y[2] = 2e-20, 3e-20
    y[3] = 0.0
    assert_equal(read((x, y)), EffectValues(2, 1, (math.sqrt(1 / 8) + 2) / 2, 2.0), 1e-5)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_a_few_tokens_are_counted_as_many_are(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, generator=generator).to(dtype)
    y = torch.where(torch.rand(2, 3, 1, generator=generator) < 0.5, x, x * 1.5)
    for one in (x, y):
        odd = torch.rand(2, 3, 4, generator=generator)
        one[odd < 0.05], one[(odd > 0.05) & (odd < 0.1)], one[odd > 0.9] = math.nan, math.inf, 0
    dim = seed % 3
    sums, many = EffectSums(1, torch.device("cpu")), measure_change(x, y, dim)
    sums.add("test", 0, x, y, dim)
    assert torch.allclose(sums._of("test")[0], many, rtol=1e-2 if dtype.itemsize == 2 else 1e-6)
    assert changed_tokens(x, y, dim).sum() == many[0] + many[6]


def test_what_graphs_add_to_is_added_to_in_place() -> None:
    sums, one = EffectSums(1, torch.device("cpu")), torch.ones(1, 2)
    sums.prepare(["predict"])
    held = sums._of("predict")
    sums.add("predict", 0, one, 2 * one)
    held[0, 0] += 1  # as a graph does
    sums.add("predict", 0, one, 2 * one)
    assert sums.take("predict") == [EffectValues(3, 2, 1.0, 1.0)]


def test_what_is_not_finite_counts_as_unchanged() -> None:
    x = torch.ones(5, 2)
    x[0, 0], x[1, 0] = math.nan, math.inf
    y = x * 2
    y[2, 0] = math.inf
    assert_equal(read((x, y)), EffectValues(2, 1, 1.0, 1.0, broken=1))
    assert_equal(read((x, x.clone())), EffectValues(0, 0, math.nan, math.nan))


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 3, 4, 5, 6)])
def test_tokens_are_all_but_the_last_dimension(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert_equal(read((x, 2 * x)), EffectValues(math.prod(shape[:-1]), 1, 1.0, 1.0))


def test_of_images_they_are_pixels() -> None:
    x = torch.randn(2, 3, 4, 5)
    y = x.clone()
    y[:, :, 1, 2] *= -1
    assert_equal(read((x, y)), EffectValues(2, 1, 2.0, 2.0))


def test_it_changes_nothing_and_records_no_gradient() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = x * 2
    kept = y.detach().clone()
    assert not measure_change(x, y).requires_grad
    assert torch.equal(y, kept)


def test_ranks_merge_like_edits() -> None:
    edits = [(torch.randn(2, 3, 4), torch.randn(2, 3, 4)) for _ in range(3)]
    merged = merge_changes(torch.stack([measure_change(*edit) for edit in edits]))
    sums = EffectSums(1, torch.device("cpu"))
    for edit in edits:
        sums.add("test", 0, *edit)
    assert torch.allclose(sums._of("test")[0], merged)


def test_fired_counts_the_edits_that_changed_a_token() -> None:
    x, some = torch.ones(2, 3, 4), torch.arange(3)[:, None] == 1
    assert_equal(read((x, 2 * x), (x, x.clone()), (x, torch.where(some, -x, x))), EffectValues(8, 2, 1.25, 2.0))
    assert_equal(read((x, x.clone()), (x, x)), EffectValues(0, 0, math.nan, math.nan))  # and not None: edits were made


def test_stages_and_places_are_apart_and_totals_stay() -> None:
    sums, one, other = EffectSums(2, torch.device("cpu")), torch.ones(1, 2), torch.full((1, 2), 1.5)
    assert sums.take("train") == sums.totals("train") == [None] * 2
    with torch.inference_mode():
        sums.add("train", 1, one, other)
    sums.add("train", 1, one, 2 * one)
    assert sums.take("predict") == [None] * 2
    assert sums.take("train") == [None, EffectValues(2, 2, 0.75, 1.0)]
    sums.add("train", 1, one, other)
    assert sums.take("train") == [None, EffectValues(1, 1, 0.5, 0.5)]
    assert sums.totals("train")[1] == EffectValues(3, 3, pytest.approx(2 / 3), 1.0)
    assert sums.take("train") == [None] * 2


def test_what_is_shared_and_kept_is_in_the_totals_and_taken_later() -> None:
    sums, one = EffectSums(1, torch.device("cpu")), torch.ones(1, 2)
    sums.add("train", 0, one, 2 * one)
    assert exchange([sums.share("train", keep=True)])[0] == sums.totals("train") == [EffectValues(1, 1, 1.0, 1.0)]
    sums.add("train", 0, one, 3 * one)
    assert sums.take("train") == sums.totals("train") == [EffectValues(2, 2, 1.5, 2.0)]


def test_a_state_goes_on_at_the_places_it_is_of() -> None:
    sums, other, one = EffectSums(3, torch.device("cpu")), EffectSums(2, torch.device("cpu")), torch.ones(1, 2)
    for place in range(3):
        sums.add("train", place, one, (2 + place) * one)
    sums.take("train")
    sums.add("train", 2, one, 2 * one)
    state = sums.state([2, 0])
    with torch.inference_mode():
        other.load([0, 1], state)
    sums.add("train", 2, one, 9 * one)  # the state is a copy
    other.add("train", 1, one, 2 * one)
    assert other.take("train") == [EffectValues(1, 1, 1.0, 1.0)] * 2
    assert other.totals("train") == [EffectValues(2, 2, 2.0, 3.0), EffectValues(2, 2, 1.0, 1.0)]


def test_of_a_number_there_is_no_dimension() -> None:
    sums, x = EffectSums(1, torch.device("cpu")), torch.tensor(2.0)
    sums.add("test", 0, x, 3 * x)
    assert sums.take("test") == [EffectValues(1, 1, 2.0, 2.0)]
