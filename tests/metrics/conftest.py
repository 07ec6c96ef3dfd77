"""The forms of the look at an activation, which one test suite is for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.metrics import known_statistics
from mi_crow_lightning.metrics.one_pass import in_graph, on_cpu
from mi_crow_lightning.metrics.one_pass import measure as one_pass
from mi_crow_lightning.metrics.one_pass.in_graph import measure_traced
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.metrics.one_pass.measure import measure
from mi_crow_lightning.metrics.one_pass.on_cuda import choice
from mi_crow_lightning.metrics.one_pass.tokens import as_tokens
from mi_crow_lightning.metrics.statistic import Sum
from mi_crow_lightning.metrics.summary import Group, Summary


class Measure(Protocol):
    def __call__(
        self, x: Tensor, mask: Tensor | None = None, groups: Group = Group.ALL, sums: Sequence[Sum] = ()
    ) -> Summary: ...


class Form(NamedTuple):
    """One way to measure, and how far it may be off.

    Attributes:
        name: in float64 ``compiled`` by numba, ``at_hand`` as on a CPU without numba, or on a device that would have
            to be waited for (``elsewhere``);
            in float32 ``traced``, or the kernels in the interpreter (``kernel``) or on a GPU (``given_device``).
        measure: what `mi_crow_lightning.metrics.one_pass.measure.measure` is in this form.
        sums: of sums of squares and higher powers, relative.
        mean: of the mean and of norms, relative.
        offset: of the mean, in standard deviations.
    """

    name: str
    measure: Measure
    sums: float
    mean: float
    offset: float


def measure_as_traced(
    x: Tensor, mask: Tensor | None = None, groups: Group = Group.ALL, sums: Sequence[Sum] = ()
) -> Summary:
    tokens, keep = as_tokens(x, mask)
    if x.numel() == 0:
        return measure(x, mask, groups, sums)
    return measure_traced(tokens, keep, groups, sums)


def measure_on_device(
    x: Tensor, mask: Tensor | None = None, groups: Group = Group.ALL, sums: Sequence[Sum] = ()
) -> Summary:
    summary = measure(x.to(DEVICE), None if mask is None else mask.to(DEVICE), groups, sums)
    return Summary(*(part.cpu() for part in summary))


# `make gpu` sets it, as for tests/on_device.
DEVICE = os.environ.get("MI_CROW_LIGHTNING_TEST_DEVICE", "cpu")
# `make test-kernel` sets it: Triton reads it when it is imported, so a process has interpreted kernels or none.
WITH_KERNEL = ["kernel"] if os.environ.get("TRITON_INTERPRET") == "1" else []
WITH_DEVICE = ["given_device"] if "MI_CROW_LIGHTNING_TEST_DEVICE" in os.environ and not WITH_KERNEL else []
KERNEL_DEVICE = "cuda" if DEVICE == "cuda" and not WITH_KERNEL else "cpu"


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the CPU is measured by numpy."""
    monkeypatch.setattr(in_numba, "choice", lambda: in_numba.Choice(None, "a test says so"))


@pytest.fixture(params=["compiled", "at_hand", "elsewhere", "traced", *WITH_KERNEL, *WITH_DEVICE])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """Each form in turn; those of the kernels where they can run."""
    if request.param == "compiled":
        pytest.importorskip("numba", reason="numba is not installed: the extra fast does so")
        assert in_numba.choice().add is not None
        return Form(request.param, measure, sums=1e-10, mean=1e-12, offset=1e-14)
    if request.param in ("at_hand", "elsewhere"):
        request.getfixturevalue("without_numba")
        monkeypatch.setattr(one_pass, "is_at_hand", lambda x: request.param == "at_hand")
        return Form(request.param, measure, sums=1e-10, mean=1e-12, offset=1e-14)
    if request.param == "kernel":
        request.getfixturevalue("kernel")
    measures = {"traced": measure_as_traced, "kernel": measure, "given_device": measure_on_device}
    return Form(request.param, measures[request.param], sums=2e-6, mean=5e-7, offset=5e-7)


@pytest.fixture
def own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten when it ends."""
    monkeypatch.setattr(known_statistics, "_known", {one.name: one for one in known_statistics._BUILT_IN})
    monkeypatch.setattr(on_cpu, "SUMS", {})
    monkeypatch.setattr(in_graph, "SUMS", {})
    if WITH_KERNEL:
        from mi_crow_lightning.metrics.one_pass.on_cuda import sums

        monkeypatch.setattr(sums, "SUMS", {})


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Activations go to the kernels, on a GPU or in Triton's interpreter; memory that they do not write is nan."""
    pytest.importorskip("triton", reason="triton is not installed: make test-kernel does so")
    monkeypatch.setattr(choice, "_devices", {KERNEL_DEVICE})
    assert choice.suits(torch.ones(1, 1, device=KERNEL_DEVICE), None)
    # It fills what torch.empty gives. The tests' own operations may have no deterministic form on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=KERNEL_DEVICE == "cuda")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["torch", *WITH_KERNEL])
def rounding(request: pytest.FixtureRequest) -> float:
    """The state is added to by torch operations, then by the kernels; gives how far sums may be off, relative."""
    if request.param == "torch":
        return 1e-12
    request.getfixturevalue("kernel")
    return 2e-6
