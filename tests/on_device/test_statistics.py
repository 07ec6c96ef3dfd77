"""Statistics and histograms of activations on the device, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import (
    ActivationStatistics,
    GradientStatistics,
    Layers,
    ProjectionDetector,
    TokenStatistics,
)
from mi_crow_lightning.metrics.activation import STATISTICS, Row, channel_statistics, measure, statistics
from tests.metrics.reference import log2_counts, numpys, readings_of

SHAPES = {"tokens": (3, 50, 64), "wide": (40, 5000), "one channel": (1000, 1), "odd": (7, 11, 77), "few": (2, 3)}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_numpys(x: Tensor, mask: Tensor | None = None, sums: float = 4e-6) -> None:
    """All statistics of ``x`` on its device are numpy's, and so are the bins."""
    row, channels = measure(x, mask)
    assert row.device == x.device
    found = {name: value.item() for name, value in statistics(row).items()} | channel_statistics(row, channels)
    chosen = x if mask is None else x[mask]
    tokens = chosen.double().cpu().numpy().reshape(-1, x.shape[-1])
    expected = numpys(tokens)
    for name in set(STATISTICS) - {"nonfinite_batch"}:
        offset = 1e-5 if name == "kurtosis" else 1e-12  # a difference of numbers near 3
        assert found[name] == pytest.approx(expected[name], rel=sums, abs=offset), name
    assert row[Row.BINS :].tolist() == log2_counts(tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_everything_is_numpys(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(*shape).mul(3).add(0.5).to(device, dtype)
    assert_numpys(x)
    mask = (torch.arange(x[..., 0].numel()).reshape(shape[:-1]) % 3 > 0).to(device)
    assert_numpys(x, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_not_finite_is_counted_and_left_out(device: torch.device, dtype: torch.dtype) -> None:
    x = normal(9, 300).to(dtype)
    x[0, :40], x[3, 7], x[8, 299] = torch.nan, torch.inf, -torch.inf
    x[:, 11] = 0
    assert_numpys(x.to(device))


def test_a_mean_far_away(device: torch.device) -> None:
    x = normal(400, 1000).add(100).to(device)
    values = {name: value.item() for name, value in statistics(measure(x).row).items()}
    exact = x.double().cpu().numpy()
    assert values["mean"] == pytest.approx(exact.mean(), rel=1e-7)
    assert values["std"] == pytest.approx(exact.std(), rel=1e-5)


def test_views_and_what_is_not_contiguous(device: torch.device) -> None:
    x = normal(64, 33, 20).to(device)
    assert_numpys(x.transpose(0, 1))
    assert_numpys(x[::2, 1:, 3:17])
    assert_numpys(x[:1].expand(5, 33, 20))


def test_the_same_activation_gives_the_same_bits(device: torch.device) -> None:
    x = normal(300, 700).to(device, torch.bfloat16)
    assert torch.equal(measure(x).row, measure(x).row)


def test_a_detector_over_batches(device: torch.device) -> None:
    model, detector = nn.Sequential(nn.Identity()), ActivationStatistics("0", per_channel=True)
    Layers(model).register_hook("0", detector)
    batches = [normal(4, 6, 32, seed=seed).mul(10.0**seed) for seed in range(3)]
    for batch in batches:
        model(batch.to(device))
    found = {reading.name: reading.value for reading in detector.readings()}
    expected = readings_of(torch.cat(batches).double().numpy().reshape(-1, 32))
    for name, value in expected.items():
        if isinstance(value, list):
            assert list(found[name].counts) == value, name
        else:
            assert found[name] == pytest.approx(value, rel=4e-6, abs=1e-5), name


OTHERS: dict[str, Any] = {
    "gradients": lambda: GradientStatistics("0"),
    "tokens": lambda: TokenStatistics("0"),
    "projections": lambda: ProjectionDetector("0", vectors={"a": normal(32, seed=9), "b": normal(32, seed=8)}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_detectors_read_what_they_read_on_a_cpu(device: torch.device, kind: str) -> None:
    """What they read on a CPU is compared with references of numpy in their own tests."""
    found = []
    for where in (torch.device("cpu"), device):
        model, detector = nn.Sequential(nn.Linear(32, 32), nn.ReLU()), OTHERS[kind]()
        torch.manual_seed(0)
        model[0].weight.data.copy_(normal(32, 32, seed=5) / 6)
        model[0].bias.data.zero_()
        layers = Layers(model.to(where))
        layers.register_hook("0", detector)
        for seed in range(2):
            model(normal(4, 6, 32, seed=seed).to(where)).square().mean().backward()
        found.append({(one.layer, one.name): one.value for one in detector.readings()})
    assert found[0] and found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        if isinstance(value, (int, float)):
            assert found[1][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
        else:  # an element at an edge may fall to either side
            assert np.abs(np.subtract(found[1][key].counts, value.counts)).sum() <= 2, key
