"""The arithmetic of drift against numpy in float64, written down again from the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_crow_lightning.metrics.drift import (
    LayerChange,
    compared,
    divergence,
    empty_row,
    merge_drift,
    pair_row,
    partial_divergence,
    principal_angle,
    read_change,
    sketch_matrix,
)
from mi_crow_lightning.metrics.farthest import Farthest

Array = NDArray[np.float64]


def numpy_change(x: Array, y: Array, components: int) -> dict[str, float]:
    """The same numbers from all tokens at once: CKA from Gram matrices of tokens, angles from singular vectors."""
    norms = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    cosines = (x * y).sum(1) / norms[0] / norms[1]
    centring = np.eye(len(x)) - 1 / len(x)
    grams = [centring @ side @ side.T @ centring for side in (x, y)]
    cka = (grams[0] * grams[1]).sum() / np.sqrt((grams[0] ** 2).sum() * (grams[1] ** 2).sum())
    first, second = (np.linalg.svd(side - side.mean(0))[2][:components] for side in (x, y))
    angle = np.degrees(np.arccos(np.clip(np.linalg.svd(first @ second.T)[1].min(), -1, 1)))
    return {
        "cosine": cosines.mean(),
        "cosine_min": cosines.min(),
        "norm_ratio": (norms[0] / norms[1]).mean(),
        "cka": cka,
        "angle": angle,
    }


def rows_of(x: Tensor, y: Tensor, size: int, parts: int, seed: int = 0) -> Tensor:
    """The row of pairs that come in several parts, some from another rank."""
    matrix = sketch_matrix(x.shape[1], size, seed).to(x.dtype)
    rows = [empty_row(size)]
    for one, other in zip(x.chunk(parts), y.chunk(parts), strict=True):
        rows.append(pair_row(*compared(one, other), x.shape[1], torch.cat([one @ matrix, other @ matrix], 1)))
    return merge_drift(torch.stack(rows))


def change(x: Tensor, y: Tensor, size: int, components: int = 3, parts: int = 4, seed: int = 0) -> LayerChange:
    found = read_change(rows_of(x, y, size, parts, seed), components)
    assert found is not None
    return found


def moved(tokens: int, width: int, far: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens + width)
    y = torch.randn(tokens, width, generator=generator, dtype=dtype) * torch.linspace(3, 0.2, width, dtype=dtype) + 1
    return y + far * torch.randn(tokens, width, generator=generator, dtype=dtype), y


@pytest.mark.parametrize("size", [12, 20])
@pytest.mark.parametrize("far", [0.05, 1.0])
def test_narrow_layers_are_exact(size: int, far: float) -> None:
    x, y = moved(50, 12, far)
    found = change(x, y, size)
    assert found.tokens == 50
    for name, value in numpy_change(x.numpy(), y.numpy(), 3).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-6 if name == "angle" else 0), name


def test_sketches_of_equal_tokens_say_that_nothing_moved() -> None:
    x, _ = moved(40, 200, 0.0)
    found = change(x, x, 16)
    assert (found.cosine, found.cka, found.norm_ratio) == pytest.approx((1, 1, 1), abs=1e-12)
    assert found.angle == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("far", [0.2, 1.5])
def test_cka_of_sketches_is_near_the_exact_one(far: float) -> None:
    x, y = moved(400, 300, far)
    exact = numpy_change(x.numpy(), y.numpy(), 1)["cka"]
    found = [change(x, y, 64, seed=seed).cka for seed in range(8)]
    assert np.mean(found) == pytest.approx(exact, abs=0.02)
    assert np.abs(np.array(found) - exact).max() < 0.1


def test_off_diagonal_entries_estimate_the_squared_norm_without_bias() -> None:
    """The mean over many random matrices is the norm; with the diagonal it is far above, as the trace is large."""
    product = torch.eye(60, dtype=torch.float64) + 0.05 * torch.randn(
        60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    estimates, with_diagonal = [], []
    for seed in range(400):
        signs = sketch_matrix(60, 16, seed).double()
        inner = (signs.T @ product @ signs).square()
        estimates.append((inner.sum() - inner.diagonal().sum()).item() / (16 * 15))
        with_diagonal.append(inner.sum().item() / 16**2)
    assert np.mean(estimates) == pytest.approx(product.square().sum().item(), rel=0.05)
    assert np.mean(with_diagonal) > 3 * product.square().sum().item()


def test_a_row_that_saw_nothing_changes_nothing_and_reads_as_nothing() -> None:
    x, y = moved(20, 6, 0.5)
    row = rows_of(x, y, 6, 1)
    assert torch.equal(merge_drift(torch.stack([row, empty_row(6)])), row)
    assert read_change(empty_row(6), 2) is None


def test_one_token_has_no_cka_and_no_angle() -> None:
    x, y = moved(1, 6, 0.5)
    found = change(x, y, 6, parts=1)
    assert math.isnan(found.cka) and math.isnan(found.angle) and 0 < found.cosine < 1


def test_zero_vectors() -> None:
    x, y = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    cosines, ratios = compared(x, y)
    assert cosines.tolist() == [1, 0, 0] and ratios.tolist() == [1, 0, math.inf]


def test_angles_between_planes() -> None:
    angle = math.radians(1e-3)
    turned = torch.tensor([[1.0, 0], [0, math.cos(angle)], [0, math.sin(angle)]], dtype=torch.float64)
    assert principal_angle(torch.eye(3, dtype=torch.float64)[:, :2], turned) == pytest.approx(1e-3, rel=1e-6)
    assert principal_angle(torch.eye(2)[:, :1], torch.eye(2)[:, 1:]) == pytest.approx(90)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_divergence_is_numpys(monkeypatch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(9, 30, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    p, q = softmax(own.numpy()), softmax(other.numpy())
    expected = (p * np.log(p / q)).sum(1)
    assert divergence(own, other).numpy() == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("mi_crow_lightning.metrics.drift._MOST_LOGITS", {"cpu": 60})  # two tokens at a time
    assert divergence(own, other).numpy() == pytest.approx(expected, rel=1e-12)
    some = torch.tensor([2, 5, 7])
    assert divergence(own, other, some).numpy() == pytest.approx(expected[some], rel=1e-12)
    before = own.clone(), other.clone()
    own[:, 3] = -math.inf  # a token that is forbidden
    assert torch.isfinite(divergence(own, other)).all() and divergence(other, own).isinf().all()
    other[:, 3] = -math.inf
    assert torch.isfinite(divergence(own, other)).all()
    own[0, 0] = math.nan
    assert divergence(own, other)[0].isnan() and torch.equal(other[:, 0], before[1][:, 0])


def test_divergence_of_what_is_known_is_a_lower_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(9, 30, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    whole = divergence(own, other)
    p, q = own.log_softmax(-1), other.log_softmax(-1)
    likely = q.topk(5, -1).indices
    assert (partial_divergence(p.gather(1, likely), q.gather(1, likely)) < whole).all()
    assert torch.allclose(partial_divergence(p, q), whole, atol=1e-9)


def test_a_sample_whose_cosine_is_no_number_is_the_farthest() -> None:
    farthest = Farthest(2)
    for batch in range(3):
        cosines = torch.tensor([0.9, math.nan if batch == 1 else 0.8, 0.1 * batch])
        farthest.add(cosines, torch.tensor([0, 1, 2]), 4, [batch])  # row 3 has no token
    (first, facts), (second, others) = farthest.found()
    assert math.isnan(first) and facts == [1, 1] and (second, others) == (0.0, [0, 2])


def test_the_farthest_samples_of_many_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    farthest, means = Farthest(3), []
    for batch in range(5):
        cosines, rows = torch.rand(12, generator=generator), torch.arange(12) % 3
        farthest.add(cosines, rows, 4, [batch])  # row 3 has no token
        means += [(cosines[rows == row].double().mean().item(), [batch, row]) for row in range(3)]
    found = farthest.found()
    assert [facts for _, facts in found] == [facts for _, facts in sorted(means)[:3]]
    assert [mean for mean, _ in found] == pytest.approx([mean for mean, _ in sorted(means)[:3]])
