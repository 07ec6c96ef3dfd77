"""The three directions, from their definitions in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_crow_lightning.metrics.class_directions import _first_eigenvector, mean_difference, principal_difference
from mi_crow_lightning.metrics.class_moments import ClassMoments
from mi_crow_lightning.metrics.logistic import logistic, logistic_weights


def pairs(count: int, width: int, seed: int = 0, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Negative and positive vectors of pairs, (count, width) each, with features of very different size."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 2, width, dtype=torch.float64)
    negative, noise = torch.randn(2, count, width, generator=generator, dtype=torch.float64) * scale
    return negative, noise * 0.5 + negative + apart * scale * torch.rand(width, generator=generator)


def moments_of(negative: Tensor, positive: Tensor, scatter: list[str]) -> ClassMoments:
    moments = ClassMoments(negative.shape[1], scatter)
    label = torch.cat([torch.zeros(len(negative)), torch.ones(len(positive))])
    numbers = torch.cat([torch.arange(len(negative)), torch.arange(len(positive))])
    moments.update(torch.cat([negative, positive]), label, numbers)
    return moments


def scaled(unit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    unit = unit / np.linalg.norm(unit)
    return unit * (unit @ delta)


def newton(x: np.ndarray, label: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """The regularised logistic regression by Newton's method."""
    mean, std = x.mean(0), x.std(0)
    z = np.column_stack([(x - mean) / std, np.ones(len(x))])
    penalty = np.diag([strength] * x.shape[1] + [0.0])
    weights = np.zeros(z.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-z @ weights))
        gradient = z.T @ (p - label) + penalty @ weights
        hessian = (z * (p * (1 - p))[:, None]).T @ z + penalty
        weights = weights - np.linalg.solve(hessian, gradient)
    return weights[:-1] / std, weights[-1] - mean @ (weights[:-1] / std)


def test_the_difference_of_means() -> None:
    negative, positive = pairs(9, 5)
    found = mean_difference(moments_of(negative, positive, []))
    np.testing.assert_allclose(found.numpy(), positive.numpy().mean(0) - negative.numpy().mean(0), rtol=1e-12)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 50), (1, 4)])
def test_the_principal_component_of_differences_of_both_signs(count: int, width: int) -> None:
    negative, positive = pairs(count, width)
    found = principal_difference(moments_of(negative, positive, ["difference"])).numpy()
    differences = (positive - negative).numpy()
    unit = np.linalg.svd(np.concatenate([differences, -differences]))[2][0]
    np.testing.assert_allclose(found, scaled(unit, differences.mean(0)), rtol=1e-8, atol=1e-10)
    assert found @ differences.mean(0) > 0


@pytest.mark.parametrize("width", [1, 7, 64])
def test_the_first_eigenvector_where_all_are_nearly_equal(width: int) -> None:
    matrix = torch.eye(width, dtype=torch.float64)
    matrix[0, 0] += 1e-3
    found = _first_eigenvector(matrix).abs()
    torch.testing.assert_close(found, torch.eye(width, dtype=torch.float64)[0], rtol=0, atol=1e-8)


def test_the_first_eigenvector_draws_no_number_of_the_runs() -> None:
    before = torch.get_rng_state()
    _first_eigenvector(torch.eye(4, dtype=torch.float64))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("count", "width", "strength"), [(30, 4, 1.0), (30, 4, 1e-3), (10, 40, 1.0), (200, 20, 10.0)])
def test_the_logistic_probe_is_newtons(count: int, width: int, strength: float) -> None:
    negative, positive = pairs(count, width)
    x, label = torch.cat([negative, positive]), torch.arange(2 * count) // count
    weights, intercept = logistic_weights(x, label, strength)
    wanted, offset = newton(x.numpy(), label.numpy(), strength)
    np.testing.assert_allclose(weights.numpy(), wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
    assert intercept.item() == pytest.approx(offset, rel=1e-5, abs=1e-5)
    delta = (positive.mean(0) - negative.mean(0)).numpy()
    direction = logistic(x, label, strength).numpy()
    np.testing.assert_allclose(direction, scaled(wanted, delta), rtol=1e-4, atol=1e-5 * np.abs(direction).max())
    assert direction @ delta > 0


def test_a_probe_in_inference_mode_and_of_a_feature_that_never_varies() -> None:
    with torch.inference_mode():
        negative, positive = pairs(10, 3)
        x = torch.cat([torch.cat([negative, positive]), torch.full((20, 1), 7.0)], dim=1)
        weights, _ = logistic_weights(x.float(), torch.arange(20) // 10)
    assert weights[3] == 0 and (weights[:3] != 0).all() and not weights.is_inference()


def test_what_is_missing_is_named() -> None:
    negative, positive = pairs(4, 3)
    with pytest.raises(ValueError, match=r"there are 0 negative, 4 positive"):
        mean_difference(moments_of(negative[:0], positive, []))
    with pytest.raises(ValueError, match=r"covariance=\['difference'\]"):
        principal_difference(moments_of(negative, positive, []))
    with pytest.raises(ValueError, match=r"of 3 negative and 4 positive vectors 3 of each are in one"):
        principal_difference(moments_of(negative[:3], positive, ["difference"]))
    with pytest.raises(ValueError, match=r"of 4 samples 4 are positive"):
        logistic_weights(positive, torch.ones(4))
    with pytest.raises(ValueError, match=r"strength=0 must be a positive number"):
        logistic_weights(positive, torch.tensor([0, 1, 0, 1]), strength=0)
    with pytest.raises(ValueError, match=r"did not reach its optimum .* are all samples finite"):
        logistic_weights(positive * float("nan"), torch.tensor([0, 1, 0, 1]))
