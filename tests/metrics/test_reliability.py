"""The figures of a direction's reliability: against numpy pair by pair, and against chance itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mi_crow_lightning.metrics.flips import LEVEL, Sample, p_values
from mi_crow_lightning.metrics.pair_agreement import PairAgreement
from mi_crow_lightning.metrics.reliability import Reliability, ReliabilityTable
from mi_crow_lightning.vectors.extraction.kept_rows import wrong_way_share


def differences(n: int = 30, width: int = 17, shift: float = 0.4, seed: int = 0) -> np.ndarray:
    """Of scales as uneven as those of channels are."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) * np.geomspace(0.1, 30, width) + shift * np.geomspace(0.1, 30, width)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_coherence_is_that_of_all_pairs_one_by_one(batch: int) -> None:
    x = differences()
    agreement = PairAgreement(x.shape[1])
    for start in range(0, len(x), batch):
        part = torch.from_numpy(x[start : start + batch])
        # Rows that are no differences count for nothing, whatever they hold.
        rows = torch.cat([part, torch.full((1, x.shape[1]), float("nan")), torch.zeros(1, x.shape[1])])
        paired = torch.arange(len(rows)) != len(part)
        agreement.update(rows, paired)
    mean = x.mean(0)
    assert agreement.coherence(torch.from_numpy(mean)) == pytest.approx(
        np.mean([cosine(d, mean) for d in x]), abs=1e-14
    )
    pairs = [cosine(x[i], x[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    assert agreement.pairwise() == pytest.approx(np.mean(pairs), abs=1e-14)


def test_without_pairs_there_is_no_coherence() -> None:
    agreement = PairAgreement(3)
    agreement.update(torch.ones(2, 3), torch.tensor([False, False]))
    assert np.isnan(agreement.coherence(torch.ones(3))) and np.isnan(agreement.pairwise())
    agreement.update(torch.ones(1, 3), torch.tensor([True]))
    assert agreement.coherence(torch.ones(3)) == pytest.approx(1) and np.isnan(agreement.pairwise())
    assert np.isnan(agreement.coherence(torch.zeros(3)))


def test_the_share_that_points_against_the_mean_of_the_others() -> None:
    x = differences(shift=0.1)
    wanted = np.mean([d @ np.delete(x, i, 0).mean(0) < 0 for i, d in enumerate(x)])
    assert wrong_way_share(torch.from_numpy(x)) == wanted > 0
    assert np.isnan(wrong_way_share(torch.ones(1, 3)))


def test_all_signs_of_a_few_pairs() -> None:
    x = differences(n=8, shift=0.3)
    lengths = [np.linalg.norm(np.array(signs) @ x) for signs in itertools.product((1, -1), repeat=8)]
    wanted = np.mean(np.array(lengths) >= lengths[0] * (1 - 1e-9))
    assert p_values([Sample(torch.from_numpy(x), None)]) == [wanted]


def test_all_labels_of_a_few_samples() -> None:
    x, label = differences(n=9, shift=0.0), np.arange(9) % 2
    x[label == 1] += np.geomspace(0.1, 30, x.shape[1])

    def length(positive: tuple[int, ...]) -> float:
        is_positive = np.isin(np.arange(9), positive)
        return float(np.linalg.norm(x[is_positive].mean(0) - x[~is_positive].mean(0)))

    lengths = np.array([length(positive) for positive in itertools.combinations(range(9), 4)])
    wanted = np.mean(lengths >= length((1, 3, 5, 7)) * (1 - 1e-9))
    (found,) = p_values([Sample(torch.from_numpy(x), torch.from_numpy(label))])
    assert found == pytest.approx(wanted, abs=0.02) and 0 < wanted < 0.5


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("n", [10, 30])
def test_chance_passes_as_seldom_as_it_should(n: int, pairs: bool) -> None:
    """Of two classes that are alike, at several layers of uneven channels, in which one text may dominate."""
    passed = 0
    for seed in range(100):
        layers = [differences(n, shift=0, seed=1000 * seed + layer) for layer in range(3)]
        for x in layers:
            x[0] *= 10
        label = None if pairs else torch.arange(n) % 2
        passed += min(p_values([Sample(torch.from_numpy(x), label) for x in layers])) < LEVEL
    assert passed <= 100 * LEVEL + 3 * (100 * LEVEL) ** 0.5


def test_what_differs_passes() -> None:
    real, chance = differences(n=40, shift=0.7), differences(n=40, shift=0.0, seed=3)
    p = p_values([Sample(torch.from_numpy(x), None) for x in (real, chance)])
    assert p[0] < 0.01 and p[1] > LEVEL


def test_too_few_are_not_judged() -> None:
    few, enough = torch.ones(5, 3), torch.ones(6, 3) + torch.eye(6, 3)
    assert np.isnan(p_values([Sample(few, None)])[0]) and p_values([Sample(enough, None)])[0] < LEVEL
    label = torch.tensor([1, 1, 1, 0, 0, 0])
    assert np.isnan(p_values([Sample(enough, label)])[0])
    assert not Reliability("h", 0.1, 0.1, 0.5, float("nan"), 5).is_random


def test_the_table_says_what_it_holds() -> None:
    nan = float("nan")
    rows = [Reliability("h.0", 0.2, 0.0, 0.5, 0.3, 40, 0), Reliability("h.1", 0.6, 0.4, 0.0, 0.001, 40, 1)]
    table = ReliabilityTable(rows)
    assert table.best().layer == "h.1" and [row.is_random for row in table] == [True, False]
    assert repr(table) == (
        "<reliability at 2 layers of 40 pairs: best 'h.1', with coherence 0.6; 1 layer not better than random>"
    )
    unpaired = ReliabilityTable([Reliability("h.0", nan, nan, nan, nan, 4)])
    assert repr(unpaired) == "<reliability at 1 layer of 4 samples; too few to judge>"
    assert "anti_steerable" in str(table) and "<table" in table._repr_html_()
