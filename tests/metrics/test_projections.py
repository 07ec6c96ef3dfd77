"""Summaries of projections against numpy in float64, however the tokens are cut into passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_crow_lightning.metrics.collectives import exchange
from mi_crow_lightning.metrics.projection_sums import ProjectionSums, ProjectionValues
from mi_crow_lightning.metrics.projections import (
    empty_projections,
    merge_projections,
    onto,
    project,
    summarize_projections,
)

D = 16
UNITS = torch.linalg.qr(torch.randn(D, 3, generator=torch.Generator().manual_seed(0)))[0].T.contiguous()


def numpys(x: Tensor, mask: Tensor | None = None) -> list[ProjectionValues]:
    tokens = x.double().numpy().reshape(-1, D)
    if mask is not None:
        tokens = tokens[mask.numpy().reshape(-1)]
    along = tokens @ UNITS.double().numpy().T
    cosines = along / np.linalg.norm(tokens, axis=1, keepdims=True)
    parts = zip(along.mean(0), along.std(0), along.min(0), along.max(0), cosines.mean(0), strict=True)
    return [ProjectionValues(*map(float, part)) for part in parts]


def summary(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return summarize_projections(project(x, UNITS.to(x.dtype)), x.float().norm(dim=-1), mask)


def values(sums: ProjectionSums, stage: str) -> list[list[ProjectionValues | None]]:
    return sums.values_of(exchange([sums.share(stage)])[0])


def read(*passes: tuple[Tensor, Tensor | None]) -> list[ProjectionValues | None]:
    sums = ProjectionSums(1, 3, torch.device("cpu"))
    for x, mask in passes:
        sums.add("train", 0, summary(x, mask))
    return values(sums, "train")[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-7), (torch.bfloat16, 3e-2)])
def test_one_pass(dtype: torch.dtype, tolerance: float) -> None:
    x = (torch.randn(4, 9, D, generator=torch.Generator().manual_seed(1)) + 2).to(dtype)
    mask = torch.arange(36).reshape(4, 9) % 5 != 0
    for found, expected in zip(read((x, mask)), numpys(x, mask), strict=True):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_passes_add_up_to_all_their_tokens(sizes: list[int], seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    passes = [
        (
            torch.randn(2, n, D, generator=generator, dtype=torch.float64) + shift,
            torch.rand(2, n, generator=generator) < 0.7,
        )
        for n in sizes
    ]
    x, mask = (torch.cat([one[i].flatten(0, 1) for one in passes]) for i in (0, 1))
    found = read(*passes)
    if not mask.any():
        assert found == [None] * 3
        return
    for one, expected in zip(found, numpys(x, mask), strict=True):
        assert one == pytest.approx(expected, rel=1e-6, abs=1e-6 * max(1.0, abs(shift)))


def test_ranks_merge_like_passes_and_empty_ones_add_nothing() -> None:
    x = torch.randn(6, 4, D)
    whole, parts = summary(x), [summary(part) for part in x.split([1, 3, 2])]
    # The projections are float32 products, which differ in their last bits with the number of rows.
    merged = merge_projections(torch.stack([*parts, empty_projections(3)]))
    torch.testing.assert_close(merged, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(merge_projections(torch.stack([whole, empty_projections(3)])), whole)


def test_what_is_not_finite_and_what_has_no_length() -> None:
    x = torch.randn(5, D)
    x[1, 3], x[2, 0], x[4] = float("nan"), float("inf"), 0.0
    found = read((x, None))
    along = x[[0, 3, 4]].double().numpy() @ UNITS.double().numpy().T
    cosines = along[:2] / x[[0, 3]].double().norm(dim=1, keepdim=True).numpy()
    for i, one in enumerate(found):
        assert one is not None
        assert (one.mean, one.std) == pytest.approx((along[:, i].mean(), along[:, i].std()), rel=1e-5, abs=1e-6)
        assert one.cosine == pytest.approx(cosines[:, i].sum() / 3, rel=1e-5)  # the zero token counts as 0


def test_stages_are_apart_and_reset_alone() -> None:
    sums = ProjectionSums(2, 3, torch.device("cpu"))
    x, y = torch.randn(3, D), torch.randn(3, D)
    with torch.inference_mode():
        sums.add("train", 0, summary(x))
        sums.add("predict", 1, summary(y))
    sums.add("train", 0, summary(y))  # outside of that mode
    assert values(sums, "train")[1] == values(sums, "predict")[0] == [None] * 3
    twin = ProjectionSums(2, 3, torch.device("cpu"))
    twin.load(sums.state())
    for stage in ("train", "predict", "validate"):
        assert values(twin, stage) == values(sums, stage)
    sums.reset("train")
    sums.reset("test")
    assert values(sums, "train") == [[None] * 3] * 2 and values(sums, "predict")[1] != [None] * 3
    assert values(twin, "train")[0] != [None] * 3


def test_products_keep_the_dtype_under_autocast() -> None:
    x = torch.randn(7, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(x, UNITS), x @ UNITS.T) is False  # what autocast makes of it
        along = project(x, UNITS)
        back = onto(along, UNITS)
    assert torch.equal(along, x @ UNITS.T) and torch.equal(back, along @ UNITS)
