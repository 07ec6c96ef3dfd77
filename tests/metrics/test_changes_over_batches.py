"""Changes over batches against sums of each batch by itself: thinned, and of ranks that have different batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.metrics import changes_over_batches
from mi_crow_lightning.metrics.changes import Change, EffectSums, EffectValues, measure_change, merge_changes
from mi_crow_lightning.metrics.changes_over_batches import BatchPoint, ChangesOverBatches, most_points
from mi_crow_lightning.metrics.collectives import exchange

PLACES = 2
Edits = list[list[tuple[int, Tensor, Tensor]]]  # of each batch: place, before, after


def edits_of(batches: int, seed: int) -> Edits:
    """Some batches have no edit, some one at one of the places, some several."""
    generator = torch.Generator().manual_seed(seed)

    def edit() -> tuple[int, Tensor, Tensor]:
        x = torch.randn(3, 4, generator=generator)
        scales = 1 + torch.rand(3, 1, generator=generator) * (torch.rand(3, 1, generator=generator) < 0.7)
        return int(torch.randint(PLACES, (), generator=generator)), x, x * scales

    return [[edit() for _ in range(int(torch.randint(4, (), generator=generator)))] for _ in range(batches)]


def followed(edits: Edits) -> tuple[EffectSums, ChangesOverBatches]:
    sums = EffectSums(PLACES, torch.device("cpu"))
    over = ChangesOverBatches(sums, "predict", PLACES)
    for batch in edits:
        for place, before, after in batch:
            sums.add("predict", place, before, after)
        over.end_batch()
    return sums, over


def assert_points(points: list[BatchPoint], ranks: list[Edits], every: int) -> None:
    """Each point has what a fresh count of its batches alone has."""
    longest = max(map(len, ranks))
    assert [point.batch for point in points] == [*range(every, longest, every), longest]
    for first, point in zip(range(0, longest, every), points, strict=True):
        together = [edit for edits in ranks for batch in edits[first : first + every] for edit in batch]
        for place, values in enumerate(point.values):
            changes = [measure_change(before, after) for at, before, after in together if at == place]
            if not changes:
                assert values is None
                continue
            rows = torch.stack(changes)
            tokens, rated = rows[:, Change.TOKENS].sum(), rows[:, Change.RATED].sum()
            ratio = rows[:, Change.RATIOS].sum() / rated if rated else math.nan
            largest = rows[:, Change.LARGEST].amax() if rated else math.nan
            assert values is not None and values.tokens == tokens and values.fired == rows[:, Change.FIRED].sum()
            assert values.mean_ratio == pytest.approx(float(ratio), nan_ok=True)
            assert math.isnan(largest) if math.isnan(values.max_ratio) else values.max_ratio == largest  # exactly


@pytest.mark.parametrize(("batches", "most", "every"), [(7, 10, 1), (9, 10, 1), (10, 10, 2), (23, 10, 4), (80, 10, 16)])
def test_points_are_the_batches_since_the_one_before(
    batches: int, most: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_over_batches, "_MOST", most)
    edits = edits_of(batches, seed=batches)
    sums, over = followed(edits)
    plain = EffectSums(PLACES, torch.device("cpu"))
    for place, before, after in (edit for batch in edits for edit in batch):
        plain.add("predict", place, before, after)
    state = sums.state(range(PLACES))["rows"]["predict"]
    assert torch.equal(state, plain.state(range(PLACES))["rows"]["predict"])
    points, taken = exchange([over.share(), sums.share("predict")])
    assert_points(points, [edits], every)
    assert len(points) <= most
    assert taken == plain.take("predict")  # to the last bit
    assert exchange([over.share(), sums.share("predict")]) == [[], [None, None]]  # and begins again
    sums.add("predict", 0, torch.ones(1, 2), torch.ones(1, 2) * 1.25)
    over.end_batch()
    again = EffectValues(1, 1, 0.25, 0.25)
    assert exchange([over.share(), sums.share("predict")]) == [[BatchPoint(1, [again, None])], [again, None]]


@pytest.mark.parametrize(("lengths", "every"), [((7, 4), 1), ((23, 4), 4), ((3, 0), 1), ((12, 45, 9), 8), ((0, 0), 1)])
def test_ranks_are_joined_by_the_numbers_of_their_batches(
    lengths: tuple[int, ...], every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_over_batches, "_MOST", 10)
    monkeypatch.setattr(changes_over_batches, "is_distributed", lambda: True)
    ranks = [edits_of(length, seed=length) for length in lengths]
    owners: list[Any] = [followed(edits)[1].share() for edits in ranks]
    answers: list[Any] = [None for _ in owners]
    results: list[Any] = []
    while not results:  # as `exchange` does, with all ranks in one process
        shares = []
        for owner, answer in zip(owners, answers, strict=True):
            try:
                shares.append(owner.send(answer))
            except StopIteration as over:
                results.append(over.value)
        assert len(shares) in (0, len(owners)), "a rank would wait for another"
        answers = [shares[0].merge(torch.stack([share.tensor for share in shares])) for _ in shares]
    assert all(points == results[0] for points in results) and len(results) == len(ranks)
    if max(lengths):
        assert_points(results[0], ranks, every)
    else:
        assert results[0] == []


def test_marks_and_totals_do_not_disturb_one_another() -> None:
    sums = EffectSums(1, torch.device("cpu"))
    assert sums.mark("test") is None
    with torch.inference_mode():
        sums.add("test", 0, torch.ones(1, 2), 3 * torch.ones(1, 2))
        first = sums.mark("test")
        sums.add("test", 0, torch.ones(1, 2), 2 * torch.ones(1, 2))
        second = sums.mark("test")
    sums.add("test", 0, torch.ones(1, 2), 1.5 * torch.ones(1, 2))  # outside of inference mode
    assert first is not None and second is not None
    assert [float(mark[0, Change.LARGEST]) for mark in (first, second)] == [2.0, 1.0]
    assert sums.take("test") == [EffectValues(3, 3, 3.5 / 3, 2.0)]
    assert sums.totals("test") == [EffectValues(3, 3, 3.5 / 3, 2.0)]
    assert float(merge_changes(torch.stack([first, second]))[0, Change.LARGEST]) == 2.0


def test_many_places_have_fewer_points() -> None:
    assert most_points(1) == most_points(64) == 500
    for places in (65, 333, 5000, 10**6):
        assert most_points(places) % 2 == 0 and (most_points(places) * places <= 32_000 or most_points(places) == 10)
