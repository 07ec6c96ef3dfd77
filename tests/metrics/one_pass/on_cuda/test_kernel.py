"""The kernels alone: tiles, units and shifts, and when they are used. The numbers are in one_pass/test_measure.py."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_crow_lightning.metrics.activation import STATISTICS, Row, channel_statistics, measure, statistics
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.one_pass.on_cuda import choice
from tests.metrics.conftest import KERNEL_DEVICE, WITH_KERNEL
from tests.metrics.reference import numpys

if not WITH_KERNEL and KERNEL_DEVICE == "cpu":
    pytest.skip(
        "the kernels run in Triton's interpreter, in a process of their own: make test-kernel, or on a GPU: make gpu",
        allow_module_level=True,
    )

pytestmark = pytest.mark.usefixtures("kernel")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(KERNEL_DEVICE)


def assert_numpys(x: Tensor, mask: Tensor | None = None) -> None:
    """All statistics of ``(N, D)``, of which ``(N,)`` tokens count, are numpy's in float64."""
    row, channels = measure(x, mask)
    found = {name: value.item() for name, value in statistics(row).items()} | channel_statistics(row, channels)
    expected = numpys((x if mask is None else x[mask]).double().cpu().numpy())
    for name in set(STATISTICS) - {"nonfinite_batch"}:
        offset = 1e-5 if name == "kurtosis" else 1e-12  # a difference of numbers near 3
        assert found[name] == pytest.approx(expected[name], rel=4e-6, abs=offset), name


@pytest.mark.parametrize("rows", [64, 32, 16, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_tile(monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype) -> None:
    from mi_crow_lightning.metrics.one_pass.on_cuda import launch

    monkeypatch.setattr(launch, "_ROWS", (rows,))
    monkeypatch.setattr(launch, "_MANY", 2)  # three programs: more than one round in the second kernel
    x = normal(2 * rows + 3, 8192 // rows + 5).add(3).to(dtype)
    assert_numpys(x)
    assert_numpys(x, torch.arange(len(x), device=x.device) % 3 > 0)


@pytest.mark.parametrize(("first", "last"), [(-20, 15), (0, 1)])
def test_elements_that_grow_from_tile_to_tile(first: float, last: float) -> None:
    x = normal(5, 4000) * torch.logspace(first, last, 4000).to(KERNEL_DEVICE)
    assert_numpys(x)
    assert_numpys(x.flip(1))


@pytest.mark.parametrize("first", ["masked", "nan"])
def test_a_mean_far_away_whose_first_elements_do_not_count(first: str) -> None:
    x = normal(20, 1500).add(100)
    mask = torch.arange(20, device=KERNEL_DEVICE) >= 9 if first == "masked" else None
    if first == "nan":
        x[:, :1030] = torch.nan
    counted = x[9:] if mask is not None else x[:, 1030:]
    values = {name: value.cpu() for name, value in statistics(measure(x, mask).row).items()}
    exact = counted.double().cpu().numpy()
    np.testing.assert_allclose(values["std"], exact.std(), rtol=2e-6)
    np.testing.assert_allclose(values["mean"], exact.mean(), rtol=1e-7)


def test_a_token_counts_for_an_element_in_any_tile() -> None:
    mask = torch.zeros(6, 3000, dtype=torch.bool, device=KERNEL_DEVICE)
    mask[1, 5] = mask[2, 2900] = mask[4, 5] = mask[4, 2900] = True
    assert measure(normal(6, 3000), mask).row[[Row.TOKENS, Row.COUNT]].tolist() == [3, 4]


def test_the_same_activation_gives_the_same_bits() -> None:
    x = normal(30, 300)
    assert torch.equal(measure(x).row, measure(x).row)


def test_what_it_adds_to_is_what_torch_operations_add_to(monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernel, by_torch = (ActivationStatisticsMetric(2).to(KERNEL_DEVICE) for _ in range(2))
    for metric, devices in ((by_kernel, {KERNEL_DEVICE}), (by_torch, set())):
        monkeypatch.setattr(choice, "_devices", devices)
        for batch, x in enumerate((normal(9, 70) + 5, normal(3, 70) * 1e4, normal(2, 70) * torch.inf)):
            metric.accumulate(1, x, batch=batch)
            metric.accumulate(0, x[:, :8].contiguous())
    torch.testing.assert_close(by_kernel.buffer, by_torch.buffer, rtol=2e-6, atol=0)
    assert by_kernel.rows[:, Row.BAD_BATCH].tolist() == [torch.inf, 2]


class Wrapped(torch.Tensor):
    """A tensor that is not plain."""


def test_what_goes_to_torch_operations() -> None:
    plain, mask = torch.ones(300, 3, device=KERNEL_DEVICE), torch.ones(300, 1, dtype=torch.bool)
    assert choice.suits(plain, None) and choice.suits(plain.half(), mask.to(KERNEL_DEVICE))
    assert not choice.suits(plain.double(), None)
    assert not choice.suits(plain.as_subclass(Wrapped), None)
    assert not choice.suits(plain.to("meta"), None)
    assert not choice.suits(plain, mask.to("meta"))
    assert not choice.suits(plain[:0], None) and not choice.suits(plain[:, :0], None)
    wide = torch.ones(1, device=KERNEL_DEVICE).expand(300, 2**17)
    assert choice.suits(wide, None) and not choice.suits(wide[:10], None)


def test_a_kernel_that_cannot_be_built_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mi_crow_lightning.metrics.one_pass.on_cuda import launch

    def look(*args: object, **kwargs: object) -> None:
        raise OSError("no C compiler")

    monkeypatch.setattr(choice, "_refused", set())
    monkeypatch.setattr(launch, "look", {(1,): look})
    x = normal(3, 4)
    with pytest.warns(RuntimeWarning, match=f"does not run on {KERNEL_DEVICE}.*OSError: no C compiler"):
        row = measure(x).row
    assert torch.equal(measure(x).row, row)  # no second warning, which would be an error here
    assert row[Row.COUNT] == 12


@pytest.mark.skipif(not WITH_KERNEL, reason="for a machine without a GPU")
def test_the_kernels_compile_to_machine_code() -> None:
    # Triton needs no GPU for this, but a process in which it does not interpret.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-m", "tests.metrics.one_pass.on_cuda.program_compile"], env=environment, check=True
    )
