"""Moments of two classes and of their pairs: any split, in any order, is numpy over all vectors at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mi_crow_lightning.metrics.class_moments import GROUPS, ClassMoments, merge_means

WIDTH = 3


class Batch(NamedTuple):
    x: Tensor
    label: Tensor
    pair: Tensor | None


def assert_moments(moments: ClassMoments, wanted: dict[str, np.ndarray], scale: float = 1.0) -> None:
    for group, vectors in wanted.items():
        found = moments.of(group)
        assert found.n == len(vectors), group
        mean = vectors.mean(0) if len(vectors) else np.zeros(WIDTH)
        np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-12, atol=1e-12 * scale, err_msg=group)
        if found.covariance is not None and len(vectors) > 1:
            covariance = np.cov(vectors.T)
            np.testing.assert_allclose(found.covariance.numpy(), covariance, atol=1e-11 * scale**2, err_msg=group)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[Batch], float]:
    """Batches with some of each class, other classes among them; far from zero or not."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    offset, seed = draw(st.sampled_from([0.0, 1.0, 1e4])), draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        x = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64) + offset
        batches.append(Batch(x, torch.randint(-2, 2, (size,), generator=generator), None))
    return batches, 1 + offset


@settings(max_examples=100)
@given(labelled())
def test_batches_merge_to_numpy_over_all(drawn: tuple[list[Batch], float]) -> None:
    batches, scale = drawn
    moments = ClassMoments(WIDTH, ["negative", "positive"])
    for batch in batches:
        moments.update(*batch)
    x, label = torch.cat([batch.x for batch in batches]).numpy(), torch.cat([b.label for b in batches]).numpy()
    wanted = {"negative": x[label == 0], "positive": x[label == 1], "difference": np.zeros((0, WIDTH))}
    assert_moments(moments, wanted, scale)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
def test_pairs_are_found_in_any_order(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    moments, differences = ClassMoments(WIDTH, GROUPS), []
    for size in sizes:
        negative, positive = torch.randn(2, size, WIDTH, generator=generator, dtype=torch.float64)
        differences.append((positive - negative).numpy())
        order = torch.randperm(2 * size, generator=generator)
        numbers = torch.randperm(1000, generator=generator)[:size]
        label = torch.tensor([0] * size + [1] * size)
        moments.update(torch.cat([negative, positive])[order], label[order], torch.cat([numbers, numbers])[order])
    assert_moments(moments, {"difference": np.concatenate(differences)})


def test_rows_without_exactly_one_partner_are_no_pair() -> None:
    x = torch.arange(8.0)[:, None].expand(8, WIDTH)
    label = torch.tensor([0, 1, 0, 1, 1, 0, 1, -1])
    pair = torch.tensor([1, 1, 2, 2, 2, 3, 4, 4])  # one pair; two positives; no positive; no negative
    moments = ClassMoments(WIDTH)
    moments.update(x, label, pair)
    assert_moments(moments, {"difference": np.ones((1, WIDTH))})
    assert (moments.of("negative").n, moments.of("positive").n) == (3, 4)


def test_rows_that_are_left_out_may_hold_anything() -> None:
    x = torch.tensor([[1.0], [float("nan")], [4.0], [float("inf")]]).expand(4, WIDTH)
    moments = ClassMoments(WIDTH, GROUPS)
    moments.update(x, torch.tensor([0, -2, 1, -1]), torch.tensor([0, 0, 0, 0]))
    assert_moments(moments, {"difference": np.full((1, WIDTH), 3.0), "positive": np.full((1, WIDTH), 4.0)})


def test_a_mean_far_from_zero_keeps_its_covariance() -> None:
    x = torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e8
    moments = ClassMoments(WIDTH, ["positive"])
    for part in x.split(7):
        moments.update(part, torch.ones(len(part)))
    covariance = moments.of("positive").covariance
    assert covariance is not None
    np.testing.assert_allclose(covariance.numpy(), np.cov(x.numpy().T), rtol=1e-6, atol=1e-7)


def test_memory_does_not_grow() -> None:
    def numbers(batches: int) -> int:
        moments = ClassMoments(WIDTH, GROUPS)
        for _ in range(batches):
            moments.update(torch.randn(4, WIDTH), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
        return sum(tensor.numel() for tensor in moments.tensors().values())

    assert numbers(1) == numbers(50) == 3 + 3 * WIDTH + 3 * WIDTH**2


def test_an_update_waits_for_no_number() -> None:
    # A fake tensor holds none: whatever asks for one raises.
    with FakeTensorMode():
        moments = ClassMoments(WIDTH, GROUPS)
        moments.update(torch.randn(4, WIDTH), torch.randint(0, 2, (4,)), torch.randint(0, 2, (4,)))


def test_inference_mode_leaves_no_inference_tensors() -> None:
    with torch.inference_mode():
        moments = ClassMoments(WIDTH, GROUPS)
        moments.update(torch.randn(4, WIDTH), torch.tensor([0, 1, 0, 1]))
    moments.update(torch.randn(4, WIDTH), torch.tensor([0, 1, 0, 1]))
    assert moments.of("positive").n == 4


def test_tensors_and_back() -> None:
    moments = ClassMoments(WIDTH, ["difference"])
    moments.update(torch.randn(4, WIDTH), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    kept = moments.tensors()
    again = ClassMoments.from_tensors(kept)
    again.update(torch.randn(4, WIDTH), torch.tensor([0, 1, 0, 1]))
    assert torch.equal(kept["mean"], moments.mean)  # copies
    assert list(again.scatter) == ["difference"] and again.of("negative").n == 4


def test_merged_means() -> None:
    counts, means = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[[4.0], [0.0]], [[8.0], [0.0]]])
    assert merge_means(counts, means).tolist() == [[7.0], [0.0]]


@pytest.mark.parametrize("wrong", ["difference", ["differences"]])
def test_unknown_groups_are_refused(wrong: object) -> None:
    with pytest.raises(
        ValueError, match=r"scatter=.*choose a list of groups from 'negative', 'positive', 'difference'"
    ):
        ClassMoments(WIDTH, wrong)  # type: ignore[arg-type]
