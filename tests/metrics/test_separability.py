"""AUROC and d' by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_crow_lightning.metrics.separability import separability


def by_rank(scores: np.ndarray, label: np.ndarray) -> float:
    """The share of pairs of a positive and a negative in which the positive is higher; a tie is half."""
    positive, negative = scores[label == 1][:, None], scores[label == 0]
    return float((positive > negative).mean() + (positive == negative).mean() / 2)


samples = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@settings(max_examples=100)
@given(samples, st.sampled_from([1.0, 1000.0, 1e-3]), st.sampled_from([0.0, 5000.0]))
def test_the_area_is_that_of_the_ranks(rows: list[tuple[int, bool]], scale: float, offset: float) -> None:
    scores = np.array([score for score, _ in rows]) * scale + offset
    label = np.array([label for _, label in rows]).astype(int)
    found = separability("h.0", torch.from_numpy(scores), torch.from_numpy(label))
    assert found.auroc == pytest.approx(by_rank(scores, label), abs=1e-6)
    assert (found.layer, found.n) == ("h.0", len(rows))


def test_d_prime() -> None:
    scores, label = torch.tensor([1.0, 3.0, 10.0, 16.0]), torch.tensor([0, 0, 1, 1])
    assert separability("", scores, label).d_prime == pytest.approx((13 - 2) / ((1 + 9) / 2) ** 0.5)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'h.0': both classes are needed, and of 3 samples 3 are positive"):
        separability("h.0", torch.randn(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"'h.0': 1 of 2 scores are not finite"):
        separability("h.0", torch.tensor([1.0, float("nan")]), torch.tensor([0, 1]))
