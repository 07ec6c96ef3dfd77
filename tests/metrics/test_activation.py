"""The rows against a reference in numpy, written from the formulas and sharing no code with them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_crow_lightning import metrics
from mi_crow_lightning.metrics import activation
from mi_crow_lightning.metrics.activation import (
    EDGES,
    ROW_SIZE,
    STATISTICS,
    Row,
    empty_rows,
    histogram,
    merge,
    statistics,
    summarize,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SPECIAL = [
    0.0,
    -0.0,
    1e-40,
    -1e-40,
    5e-8,
    math.inf,
    -math.inf,
    math.nan,
    2.0**14,
    -(2.0**14),
    3e4,
    -6e4,
    1e-7,
]
SPECIAL += [sign * 2.0**e for e in range(-24, 16) for sign in (1, -1)]


def reference(x: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """The row of ``x``, in float64 numpy, from the formulas."""
    values = x.double().numpy()
    selected = np.ones(values.shape, bool)
    if mask is not None:
        selected &= mask.numpy().reshape((*mask.shape, *[1] * (values.ndim - mask.ndim)))
    chosen = values[selected]
    v = chosen[np.isfinite(chosen)]
    # np.histogram's bins are half-open upwards, ours are mirror images: count each side by magnitude.
    powers = np.array([2.0**e for e in range(-18, 14)] + [np.inf])
    positive, negative = (np.histogram(side, powers)[0] for side in (v[v > 0], -v[v < 0]))
    centre = (np.abs(v) < 2.0**-18).sum()
    mean = v.mean() if v.size else 0.0
    head = [v.size, mean, ((v - mean) ** 2).sum(), v.min(initial=np.inf), v.max(initial=-np.inf)]
    return np.array([*head, (v == 0).sum(), chosen.size - v.size, *negative[::-1], centre, *positive], np.float64)


def assert_row(row: Tensor, expected: np.ndarray) -> None:
    assert row.shape == (ROW_SIZE,)
    assert row.dtype == torch.float64
    exact = [i for i in range(ROW_SIZE) if i not in (Row.MEAN, Row.M2)]
    np.testing.assert_array_equal(row.numpy()[exact], expected[exact])
    spread = max(np.sqrt(expected[Row.M2] / max(expected[Row.COUNT], 1)), abs(expected[Row.MEAN]), 1e-300)
    np.testing.assert_allclose(row[Row.MEAN], expected[Row.MEAN], rtol=1e-12, atol=1e-14 * spread)
    np.testing.assert_allclose(row[Row.M2], expected[Row.M2], rtol=1e-10, atol=1e-300)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def padding(side: str) -> Tensor | None:
    if side == "none":
        return None
    lengths = torch.tensor([5, 0, 2, 4])
    mask = torch.arange(5) < lengths[:, None]  # (B, T)
    return {"right": mask, "left": mask.flip(1), "all": torch.zeros_like(mask)}[side]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["none", "right", "left", "all"])
@pytest.mark.parametrize("special", [False, True])
def test_row_is_the_reference(dtype: torch.dtype, side: str, special: bool) -> None:
    x = normal(4, 5, 120, dtype=dtype)
    if special:
        x[:, :, : len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    assert_row(summarize(x, padding(side)), reference(x, padding(side)))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 3, 4, 5), (0,), (2, 0, 3), (3, 4, 0)])
@pytest.mark.parametrize("mask_dims", [None, 0, 1, 2, 4])
def test_every_shape(shape: tuple[int, ...], mask_dims: int | None) -> None:
    x = normal(*shape)
    mask = None if mask_dims is None else normal(*shape[:mask_dims], seed=1) > 0
    assert_row(summarize(x, mask), reference(x, mask))


@pytest.mark.parametrize("mask_dims", [None, 1, 2, 3])
def test_more_than_one_chunk(monkeypatch: pytest.MonkeyPatch, mask_dims: int | None) -> None:
    monkeypatch.setattr(activation, "_CHUNK_CPU", 50)
    x = normal(7, 11, 13).add(5)
    mask = None if mask_dims is None else normal(*x.shape[:mask_dims], seed=1) > 0
    assert_row(summarize(x, mask), reference(x, mask))


def test_strided_views() -> None:
    x = normal(6, 8, 10)
    mask = padding("right")
    assert_row(summarize(x.transpose(0, 2)), reference(x.transpose(0, 2)))
    expanded = normal(4, 1, 6).expand(4, 5, 6)
    assert_row(summarize(expanded, mask), reference(expanded, mask))


def test_no_shape_and_no_branch_depends_on_the_data() -> None:
    # A meta tensor has no data: .item(), boolean indexing and bincount raise on it.
    x = torch.empty(2, 3, 4, device="meta", dtype=torch.bfloat16)
    rows = merge(summarize(x), summarize(x, torch.empty(2, 3, device="meta", dtype=torch.bool)))
    assert rows.shape == (ROW_SIZE,)
    assert rows.is_meta
    assert all(value.is_meta for value in statistics(rows).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_variance_far_from_zero(dtype: torch.dtype) -> None:
    noise = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (noise + 100).to(dtype)
    values = statistics(summarize(x))
    exact = x.double().numpy()
    np.testing.assert_allclose(values["std"], exact.std(), rtol=1e-5)
    np.testing.assert_allclose(values["mean"], exact.mean(), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-37, 1e37])
def test_float32_extremes_do_not_overflow(scale: float) -> None:
    x = normal(1000).double().mul(scale).float()
    np.testing.assert_allclose(statistics(summarize(x))["std"], x.double().numpy().std(), rtol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_changes_nothing(dtype: torch.dtype) -> None:
    x = normal(4, 5, 6, dtype=dtype)
    x[0, 0, 0] = math.nan
    x.requires_grad_()
    before, version, state = x.detach().clone(), x._version, torch.get_rng_state()
    row = summarize(x, padding("right"))
    assert not row.requires_grad
    assert torch.equal(x.detach().view(torch.uint8), before.view(torch.uint8))
    assert x._version == version
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_refuses_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=str(dtype)):
        summarize(torch.zeros(3, dtype=dtype))


def test_refuses_other_masks() -> None:
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(4, 5, 3\)"):
        summarize(normal(4, 5, 3), torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(4, 5, 3, 1\)"):
        summarize(normal(4, 5, 3), torch.ones(4, 5, 3, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        summarize(normal(4, 5, 3), torch.ones(4, 5, dtype=torch.int64))


def test_float8() -> None:
    x = normal(50).to(torch.float8_e4m3fn)
    assert_row(summarize(x), reference(x.float()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from(SPECIAL), max_size=30))
def test_any_values(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    assert_row(summarize(x), reference(x))


@pytest.mark.parametrize(
    "call",
    [lambda: statistics(torch.zeros(5)), lambda: histogram(torch.zeros(1, ROW_SIZE))],
)
def test_refuses_what_is_not_rows(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"rows?\b.*\d"):
        call()


def test_statistics_are_numpys() -> None:
    layers = [normal(40, seed=i).relu() - i for i in range(3)]
    values = statistics(torch.stack([summarize(x) for x in layers]))
    assert tuple(values) == STATISTICS
    for i, x in enumerate(layers):
        v = x.double().numpy()
        rms, share = np.sqrt((v**2).mean()), (v == 0).mean()
        expected = [v.mean(), v.std(), rms, v.min(), v.max(), np.abs(v).max(), share, 0.0]
        np.testing.assert_allclose([values[name][i] for name in STATISTICS], expected, rtol=1e-12)


def test_statistics_of_nothing_are_nan() -> None:
    values = statistics(summarize(torch.tensor([math.nan, math.inf, -math.inf])))
    assert values.pop("nonfinite_count") == 3
    assert all(math.isnan(value) for value in values.values())


def test_histogram_is_numpys() -> None:
    x = normal(500, dtype=torch.float64)
    result, v = histogram(summarize(x)), x.numpy()
    assert result.edges == EDGES
    np.testing.assert_array_equal(result.counts, np.histogram(v, EDGES)[0])  # no element lies on an edge
    assert (result.minimum, result.maximum, result.total) == (v.min(), v.max(), 500)
    np.testing.assert_allclose([result.sum, result.sum_squares], [v.sum(), (v**2).sum()], rtol=1e-12)
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
