"""The row and the channels of one look, in every form, against a reference in numpy that shares no code with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mi_crow_lightning.metrics.activation import (
    ROW_SIZE,
    Row,
    empty_rows,
    merge,
    statistics,
    summarize,
)
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.one_pass import measure as one_pass
from mi_crow_lightning.metrics.one_pass import on_cpu
from mi_crow_lightning.metrics.summary import Group
from tests.metrics.conftest import Form
from tests.metrics.reference import log2_counts, normal

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


def as_tokens_of(x: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Elements ``(N, D)``, channels last, and which of them count."""
    values = x.double().numpy()
    selected = np.ones(values.shape, bool)
    if mask is not None:
        selected &= mask.numpy().reshape((*mask.shape, *[1] * (values.ndim - mask.ndim)))
    if values.ndim == 4 and (mask is None or mask.ndim < 2):
        values, selected = np.moveaxis(values, 1, -1), np.moveaxis(selected, 1, -1)
    width = values.shape[-1] if values.ndim else 1
    rows = math.prod(values.shape[:-1])
    return values.reshape(rows, width), selected.reshape(rows, width)


def reference(x: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """The row of ``x``, in float64 numpy, from the formulas."""
    values, selected = as_tokens_of(x, mask)
    chosen = values[selected]
    v = chosen[np.isfinite(chosen)]
    row = np.zeros(ROW_SIZE)
    mean = v.mean() if v.size else 0.0
    row[Row.COUNT], row[Row.MEAN] = v.size, mean
    row[[Row.M2, Row.M3, Row.M4]] = [((v - mean) ** power).sum() for power in (2, 3, 4)]
    row[[Row.MINIMUM, Row.MAXIMUM, Row.BAD_BATCH]] = v.min(initial=np.inf), v.max(initial=-np.inf), np.inf
    row[[Row.ZEROS, Row.NONFINITE]] = (v == 0).sum(), chosen.size - v.size
    norms: list[float] = []
    if values.size:
        norms = [np.sqrt((t[k & np.isfinite(t)] ** 2).sum()) for t, k in zip(values, selected, strict=True) if k.any()]
        row[Row.CHANNELS] = values.shape[1]
    row[Row.TOKENS], row[Row.NORM_SUM], row[Row.NORM_MAX] = len(norms), sum(norms), max(norms, default=0)
    row[Row.BINS :] = log2_counts(v)
    return row


ROUNDED = [Row.MEAN, Row.M2, Row.M3, Row.M4, Row.NORM_SUM, Row.NORM_MAX]


def assert_row(form: Form, x: Tensor, mask: Tensor | None = None) -> None:
    """The row that the form makes of ``x`` is the reference's: counts and extremes exactly."""
    row, expected = form.measure(x, mask).row, reference(x, mask)
    assert row.shape == (ROW_SIZE,)
    assert row.dtype == torch.float64
    exact = [i for i in range(ROW_SIZE) if i not in ROUNDED]
    np.testing.assert_array_equal(row.numpy()[exact], expected[exact])
    n = max(expected[Row.COUNT], 1)
    spread = max(np.sqrt(expected[Row.M2] / n), abs(expected[Row.MEAN]), 1e-300)
    np.testing.assert_allclose(row[Row.MEAN], expected[Row.MEAN], rtol=form.mean, atol=form.offset * spread)
    np.testing.assert_allclose(row[Row.M2], expected[Row.M2], rtol=form.sums, atol=1e-300)
    np.testing.assert_allclose(row[Row.M3], expected[Row.M3], rtol=form.sums, atol=form.sums * n * spread**3)
    np.testing.assert_allclose(row[Row.M4], expected[Row.M4], rtol=form.sums, atol=1e-300)
    norms = [Row.NORM_SUM, Row.NORM_MAX]
    np.testing.assert_allclose(row[norms], expected[norms], rtol=form.mean)


def padding(side: str) -> Tensor | None:
    if side == "none":
        return None
    lengths = torch.tensor([5, 0, 2, 4])
    mask = torch.arange(5) < lengths[:, None]  # (B, T)
    return {"right": mask, "left": mask.flip(1), "all": torch.zeros_like(mask)}[side]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["none", "right", "left", "all"])
@pytest.mark.parametrize("special", [False, True])
def test_row_is_the_reference(form: Form, dtype: torch.dtype, side: str, special: bool) -> None:
    x = normal(4, 5, 120, dtype=dtype)
    if special:
        x[:, :, : len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    assert_row(form, x, padding(side))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 3, 4, 5), (0,), (2, 0, 3), (3, 4, 0)])
@pytest.mark.parametrize("mask_dims", [None, 0, 1, 2, 4])
def test_every_shape(form: Form, shape: tuple[int, ...], mask_dims: int | None) -> None:
    x = normal(*shape)
    mask = None if mask_dims is None else normal(*shape[:mask_dims], seed=1) > 0
    assert_row(form, x, mask)


@pytest.mark.parametrize("form", ["at_hand", "elsewhere"], indirect=True)
@pytest.mark.parametrize("mask_dims", [None, 1, 2, 3])
def test_more_than_one_chunk(monkeypatch: pytest.MonkeyPatch, form: Form, mask_dims: int | None) -> None:
    monkeypatch.setattr(one_pass, "_CHUNK_CPU", 50)
    monkeypatch.setattr(on_cpu, "_CHUNK", 27)
    x = normal(7, 11, 13).add(5)
    mask = None if mask_dims is None else normal(*x.shape[:mask_dims], seed=1) > 0
    assert_row(form, x, mask)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("left_out", ["padding", "nan"])
def test_what_is_left_out_is_no_extreme(form: Form, sign: int, left_out: str) -> None:
    x = (normal(4, 5, 6).abs() + 1) * sign
    if left_out == "nan":
        x[0, 0, 0] = math.nan
    mask = padding("right") if left_out == "padding" else None
    assert_row(form, x, mask)


def test_strided_views(form: Form) -> None:
    x = normal(6, 8, 10)
    mask = padding("right")
    assert_row(form, x.transpose(0, 2))
    expanded = normal(4, 1, 6).expand(4, 5, 6)
    assert_row(form, expanded, mask)


def test_no_shape_and_no_branch_depends_on_the_data() -> None:
    # A meta tensor has no data: .item(), boolean indexing and bincount raise on it.
    x = torch.empty(2, 3, 4, device="meta", dtype=torch.bfloat16)
    rows = merge(summarize(x), summarize(x, torch.empty(2, 3, device="meta", dtype=torch.bool)))
    assert rows.shape == (ROW_SIZE,)
    assert rows.is_meta
    assert all(value.is_meta for value in statistics(rows).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_variance_far_from_zero(form: Form, dtype: torch.dtype) -> None:
    size = 60_000 if form.name == "kernel" else 10_000_000  # the interpreter is slow
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    x = (noise + 100).to(dtype).reshape(-1, 500)
    values = statistics(form.measure(x, groups=Group.MOMENTS).row)
    exact = x.double().numpy()
    np.testing.assert_allclose(values["std"], exact.std(), rtol=form.sums)
    np.testing.assert_allclose(values["mean"], exact.mean(), rtol=form.offset)
    d = exact - exact.mean()
    np.testing.assert_allclose(values["kurtosis"], (d**4).mean() / exact.var() ** 2 - 3, atol=10 * form.sums)


@pytest.mark.parametrize("scale", [1e-37, 1e37])
def test_float32_extremes_do_not_overflow(form: Form, scale: float) -> None:
    x = normal(10, 100).double().mul(scale).float()
    exact, (row, channels) = x.double().numpy(), form.measure(x)
    np.testing.assert_allclose(statistics(row)["std"], exact.std(), rtol=form.sums)
    np.testing.assert_allclose(statistics(row)["token_norm_mean"], np.linalg.norm(exact, axis=1).mean(), rtol=form.mean)
    np.testing.assert_allclose(channels, [(exact**2).sum(0), np.abs(exact).max(0)], rtol=form.sums)


def test_equal_elements_have_no_variance(form: Form) -> None:
    x = torch.full((7, 13), 0.7)
    assert x.mean() != x[0, 0]  # rounded
    row = form.measure(x).row
    assert row[[Row.M2, Row.M3, Row.M4]].tolist() == [0, 0, 0]
    assert row[Row.MEAN] == x[0, 0]


def test_finite_elements_whose_sum_is_not(form: Form) -> None:
    x = torch.full((40, 25), 3e38)
    x[:, 0] = 0
    assert_row(form, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["none", "right"])
@pytest.mark.parametrize("finite", [False, True])
def test_changes_nothing(form: Form, dtype: torch.dtype, side: str, finite: bool) -> None:
    x = normal(4, 5, 6, dtype=dtype)
    if not finite:
        x[0, 0, 0] = math.nan
    x.requires_grad_()
    before, version, state = x.detach().clone(), x._version, torch.get_rng_state()
    row = form.measure(x, padding(side)).row
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


def test_float8(form: Form) -> None:
    assert_row(form, normal(50).to(torch.float8_e4m3fn))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from(SPECIAL), max_size=30))
@pytest.mark.parametrize("form", ["at_hand", "elsewhere"], indirect=True)
def test_any_values(form: Form, values: list[float]) -> None:
    assert_row(form, torch.tensor(values, dtype=torch.float64))


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """Any shape, dtype and mask; a few elements of some are special."""
    shape = draw(st.lists(st.integers(1, 12), max_size=4)) + draw(st.lists(st.integers(0, 150), max_size=1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = torch.randn(shape, generator=generator).mul(draw(st.sampled_from([1e-6, 1.0, 1e4])))
    special = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=generator)]
    x = torch.where(torch.rand(shape, generator=generator) < draw(st.sampled_from([0, 0.1, 1])), special, x)
    dims = draw(st.integers(-1, len(shape)))
    mask = None if dims < 0 else torch.rand(shape[:dims], generator=generator) < draw(st.sampled_from([0.1, 0.9, 1]))
    return x.to(draw(st.sampled_from(DTYPES))), mask


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(activations())
def test_any_activation(form: Form, activation: tuple[Tensor, Tensor | None]) -> None:
    x, mask = activation
    assert_row(form, x, mask)
    assert_channels(form, x, mask)


def assert_channels(form: Form, x: Tensor, mask: Tensor | None) -> None:
    """The sums of squares are the reference's, small ones by the size of the largest; the absolute values exactly."""
    values, selected = as_tokens_of(x, mask)
    kept = np.where(selected & np.isfinite(values), values, 0)
    sums, peaks = form.measure(x, mask, Group.CHANNELS).channels
    expected = (kept**2).sum(0)
    np.testing.assert_allclose(sums, expected, rtol=form.sums, atol=1e-30 * expected.max(initial=0))
    np.testing.assert_array_equal(peaks, np.abs(kept).max(0, initial=0))


@pytest.mark.parametrize("group", Group)
def test_what_is_not_asked_for_is_not_there(form: Form, group: Group) -> None:
    x, whole = normal(4, 5, 6), form.measure(normal(4, 5, 6))
    row, channels = form.measure(x, None, group)
    fields = {
        Group.MOMENTS: [Row.MEAN, Row.M2, Row.M3, Row.M4],
        Group.EXTREMES: [Row.MINIMUM, Row.MAXIMUM, Row.ZEROS],
        Group.TOKENS: [Row.NORM_SUM, Row.NORM_MAX],
        Group.CHANNELS: [Row.CHANNELS],
        Group.BINS: list(range(Row.BINS, ROW_SIZE)),
    }[group]
    expected = empty_rows(1)[0]
    always = [Row.COUNT, Row.NONFINITE, Row.TOKENS]
    expected[[*fields, *always]] = whole.row[[*fields, *always]]
    assert torch.equal(row, expected)
    assert torch.equal(channels, whole.channels if group is Group.CHANNELS else torch.zeros(2, 0).double())


class Operations(TorchDispatchMode):
    """Notes every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mask_dims", [None, 1, 2, 3])
def test_nothing_waits_for_the_device_or_draws(mask_dims: int | None) -> None:
    x = normal(4, 5, 6).to("meta")  # to a meta tensor the same is done as to an accelerator's
    metric = ActivationStatisticsMetric(2).to("meta")
    mask = None if mask_dims is None else torch.ones(x.shape[:mask_dims], dtype=torch.bool, device="meta")
    for _ in range(2):  # the first finds the widths
        with Operations() as operations:
            metric.update(1, x, mask, batch=3)
        assert len(operations.names) > 20
        assert not operations.names & {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "unique"}
        assert not [name for name in operations.names if "rand" in name or "normal" in name]
