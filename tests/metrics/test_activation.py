"""Reading statistics and histograms from rows, against numpy."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_crow_lightning import metrics
from mi_crow_lightning.metrics.activation import (
    EDGES,
    ROW_SIZE,
    STATISTICS,
    channel_statistics,
    empty_rows,
    groups_of,
    histogram,
    statistics,
)
from mi_crow_lightning.metrics.one_pass import measure as one_pass
from mi_crow_lightning.metrics.one_pass import on_cpu
from mi_crow_lightning.metrics.summary import Group
from tests.metrics.conftest import Form
from tests.metrics.reference import normal, numpys


@pytest.mark.parametrize(
    "call",
    [lambda: statistics(torch.zeros(5)), lambda: histogram(torch.zeros(1, ROW_SIZE))],
)
def test_refuses_what_is_not_rows(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"rows?\b.*\d"):
        call()


def read(form: Form, x: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """All statistics by name."""
    row, channels = form.measure(x, mask)
    return {name: value.item() for name, value in statistics(row).items()} | channel_statistics(row, channels)


@pytest.mark.parametrize("width", [1, 4, 7])
@pytest.mark.parametrize("chunk", [10, 2**17])
def test_statistics_are_numpys(monkeypatch: pytest.MonkeyPatch, form: Form, width: int, chunk: int) -> None:
    monkeypatch.setattr(one_pass, "_CHUNK_CPU", chunk)
    monkeypatch.setattr(on_cpu, "_CHUNK", chunk // 2)
    x = normal(3, 5, width).relu() * torch.arange(1, width + 1)
    x[..., 1:2] = 0
    values, mask = read(form, x, padding_of(3, 5)), padding_of(3, 5)
    assert math.isnan(values.pop("nonfinite_batch"))
    expected = numpys(x[mask].double().numpy())
    assert set(values) == set(expected) == set(STATISTICS) - {"nonfinite_batch"}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=2 * form.sums), name


def padding_of(batch: int, tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.arange(1, batch + 1)[:, None]


def test_every_statistic_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "statistics.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    described = {name: cells for cells in rows for name in re.findall(r"`(\w+)`", cells[0])}
    assert described.keys() >= set(STATISTICS)
    assert all(len(described[name]) == 4 and all(map(str.strip, described[name])) for name in STATISTICS)


def test_kurtosis_of_what_is_known(form: Form) -> None:
    assert read(form, torch.tensor([-1.0, 1.0]))["kurtosis"] == -2
    assert math.isnan(read(form, torch.ones(3))["kurtosis"])
    assert read(form, normal(40_000).reshape(-1, 100))["kurtosis"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(("threshold", "dead"), [(0.0, 0.25), (0.5, 0.5), (0.49, 0.25), (9.0, 1.0)])
def test_dead_channels(form: Form, threshold: float, dead: float) -> None:
    summary = form.measure(torch.tensor([[0.0, 0.5, -1.0, 0.1], [-0.0, -0.2, 0.3, 2.0]]))
    assert channel_statistics(*summary, threshold)["dead_share"] == dead


def test_channels_of_images_are_dimension_one(form: Form) -> None:
    x = normal(2, 3, 4, 5)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    for mask in (None, torch.ones(2, dtype=torch.bool)):
        assert read(form, x, mask)["outlier_ratio"] == pytest.approx(numpys(pixels)["outlier_ratio"], rel=form.sums)
        assert read(form, x, mask)["token_norm_mean"] == pytest.approx(numpys(pixels)["token_norm_mean"], rel=form.sums)
    heads = x.reshape(-1, 5).double().numpy()  # with a mask (B, T) it is (B, T, H, D)
    values = read(form, x, torch.ones(2, 3, dtype=torch.bool))
    assert values["outlier_ratio"] == pytest.approx(numpys(heads)["outlier_ratio"], rel=form.sums)


def test_channels_that_are_mostly_or_all_zero(form: Form) -> None:
    x = torch.zeros(2, 4)
    assert math.isnan(read(form, x)["outlier_ratio"]) and read(form, x)["dead_share"] == 1
    x[0, 0] = 1
    assert read(form, x)["outlier_ratio"] == math.inf


def test_names_to_groups() -> None:
    assert groups_of(STATISTICS, histogram=True) == Group.ALL
    assert groups_of(["nonfinite_count", "nonfinite_batch"]) == Group.COUNTS
    assert groups_of(["rms"], channels=True) == Group.MOMENTS | Group.CHANNELS
    assert groups_of(["dead_share"]) == groups_of(["outlier_ratio"]) == Group.CHANNELS


def test_statistics_of_nothing_are_nan(form: Form) -> None:
    values = read(form, torch.tensor([math.nan, math.inf, -math.inf]))
    assert values.pop("nonfinite_count") == 3
    assert all(math.isnan(value) for value in values.values())


def test_histogram_is_numpys(form: Form) -> None:
    x = normal(500)
    result, v = histogram(form.measure(x).row), x.double().numpy()
    assert result.edges == EDGES
    np.testing.assert_array_equal(result.counts, np.histogram(v, EDGES)[0])  # no element lies on an edge
    assert (result.minimum, result.maximum, result.total) == (v.min(), v.max(), 500)
    np.testing.assert_allclose([result.sum, result.sum_squares], [v.sum(), (v**2).sum()], rtol=100 * form.mean)
    assert all(type(count) is float for count in result.counts)


def test_histogram_of_nothing_is_finite() -> None:
    result = histogram(empty_rows(1)[0])
    assert result[2:] == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert set(result.counts) == {0.0}


def test_public_names_resolve() -> None:
    assert all(getattr(metrics, name) is not None for name in metrics.__all__)
    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="summarise"):
        metrics.summarise  # noqa: B018


def test_importing_the_package_loads_neither_torch_nor_torchmetrics() -> None:
    code = "import sys, mi_crow_lightning.metrics; assert not {'torch', 'torchmetrics'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_triton_is_not_loaded_unless_it_is_used() -> None:
    code = (
        "import sys, torch; from mi_crow_lightning.metrics import measure; measure(torch.ones(2, 3)); "
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
