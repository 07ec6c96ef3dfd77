"""The look that numba compiles: equal to numpy's, whatever is given, whoever calls it, and wherever it can be kept."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mi_crow_lightning
from mi_crow_lightning.metrics import log2_bins
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.one_pass.in_numba import choice
from mi_crow_lightning.metrics.one_pass.measure import measure
from mi_crow_lightning.metrics.one_pass.on_cpu import measure_at_hand
from mi_crow_lightning.metrics.one_pass.tokens import as_tokens
from mi_crow_lightning.metrics.rows import ROW_SIZE, Row, empty_rows
from mi_crow_lightning.metrics.summary import Group, Summary
from tests.metrics.one_pass.test_measure import DTYPES, ROUNDED, as_tokens_of, reference
from tests.metrics.reference import normal

pytest.importorskip("numba", reason="numba is not installed: the extra fast does so")

from mi_crow_lightning.metrics.one_pass.in_numba import launch, look

PACKAGE = Path(mi_crow_lightning.__file__).parent
GROUPS = [Group(value) for value in range(Group.ALL.value + 1)]


def test_the_places_are_those_of_the_row() -> None:
    names = [field.name for field in Row if field < Row.BINS]
    assert [getattr(look, name) for name in names] == list(range(len(names)))
    assert look.FIRST_BIN == Row.BINS
    bins = log2_bins.MIN_EXPONENT, log2_bins.CENTRE, log2_bins.BINS
    assert bins == (look.SMALLEST_EXPONENT, look.SIDE, look.BINS)
    powers = 2.0 ** np.arange(-1022, 1024)
    for x in (powers, -powers, np.array([0.0, -0.0])):
        expected = [int(log2_bins.count_bins(torch.tensor([value])).argmax()) for value in x]
        np.testing.assert_array_equal(look._BINS_OF_TOPS[x.view(np.uint64) >> np.uint64(52)], expected)
    groups = Group.MOMENTS, Group.EXTREMES, Group.TOKENS, Group.CHANNELS, Group.BINS
    assert tuple(g.value for g in groups) == (look.MOMENTS, look.EXTREMES, look.NORMS, look.BY_CHANNEL, look.HISTOGRAM)


def assert_equal(found: Summary, expected: Summary) -> None:
    """Counts and extremes are equal, sums to 1e-12: those of odd powers by the size of their terms."""
    row, other = found.row.numpy(), expected.row.numpy()
    exact = [place for place in range(ROW_SIZE) if place not in ROUNDED]
    np.testing.assert_array_equal(row[exact], other[exact])
    n = max(other[Row.COUNT], 1)
    spread = math.sqrt(other[Row.M2] / n)
    np.testing.assert_allclose(row[Row.MEAN], other[Row.MEAN], rtol=1e-12, atol=1e-12 * spread)
    np.testing.assert_allclose(row[Row.M3], other[Row.M3], rtol=1e-12, atol=1e-12 * n * spread**3)
    even = [Row.M2, Row.M4, Row.NORM_SUM, Row.NORM_MAX]
    np.testing.assert_allclose(row[even], other[even], rtol=1e-12)
    np.testing.assert_allclose(found.channels[0], expected.channels[0], rtol=1e-12)
    np.testing.assert_array_equal(found.channels[1], expected.channels[1])


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """Finite elements of any dtype, shape and strides, some of them zeros and subnormals, and a mask of tokens."""
    width = draw(st.sampled_from([1, 3, 64, 700, 5000]))
    shape = [*draw(st.lists(st.integers(1, 7), min_size=1, max_size=2)), width]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    scale, mean = draw(st.sampled_from([(1e-9, 0.0), (1.0, 0.0), (1.0, 100.0), (300.0, 20.0)]))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + mean
    small = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 6e-8])
    chosen = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    x = torch.where(chosen, small[torch.randint(len(small), shape, generator=generator)], x)
    x = x.to(draw(st.sampled_from(DTYPES)))
    strides = draw(st.sampled_from(["whole", "turned", "every other", "repeated"]))
    if strides == "turned":
        x = x.transpose(0, -1)
    elif strides == "every other":
        x = x[..., ::2]
    elif strides == "repeated":
        x = x[:1].expand(3, *x.shape[1:])
    share = draw(st.sampled_from([None, 0.2, 0.8, 1.0]))
    mask = None if share is None else torch.rand(x.shape[:-1], generator=generator) < share
    return x, mask


@settings(max_examples=150, deadline=None)
@given(activations(), st.sampled_from([*GROUPS, Group.ALL, Group.ALL]))
def test_it_is_equal_to_numpy_s(activation: tuple[Tensor, Tensor | None], groups: Group) -> None:
    x, mask = activation
    tokens, keep = as_tokens(x, mask)
    expected = measure_at_hand(tokens if x.dtype == torch.float64 else tokens.float(), keep, groups)
    if expected is not None:  # a token counts
        assert_equal(measure(x, mask, groups), expected)


@pytest.mark.parametrize("mask_dims", [None, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, look.BLOCK - 1, look.BLOCK, 2 * look.BLOCK + 5])
def test_any_width(width: int, dtype: torch.dtype, mask_dims: int | None) -> None:
    x = normal(7, width, dtype=dtype)
    x[0, 0], x[3, -1], x[5, width // 2] = math.nan, math.inf, -math.inf
    mask = None if mask_dims is None else normal(*x.shape[:mask_dims], seed=1) > 0
    found, values = measure(x, mask), as_tokens_of(x, mask)
    exact = [place for place in range(ROW_SIZE) if place not in ROUNDED]
    np.testing.assert_array_equal(found.row[exact], reference(x, mask)[exact])
    np.testing.assert_allclose(found.row[ROUNDED], reference(x, mask)[ROUNDED], rtol=1e-11, atol=1e-11)
    kept = np.where(values[1] & np.isfinite(values[0]), values[0], 0)
    np.testing.assert_allclose(found.channels[0], (kept**2).sum(0), rtol=1e-12)
    np.testing.assert_array_equal(found.channels[1], np.abs(kept).max(0))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_PART", 300)


@pytest.mark.parametrize("mask_dims", [None, 1, 2])
def test_the_number_of_threads_changes_no_digit(
    small_parts: None, monkeypatch: pytest.MonkeyPatch, mask_dims: int | None
) -> None:
    x = normal(50, 37).add(3)
    x[4, 4] = math.nan
    mask = None if mask_dims is None else normal(*x.shape[:mask_dims], seed=1) > 0
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(measure(x, mask))
    for other in found[1:]:
        assert torch.equal(other.row, found[0].row) and torch.equal(other.channels, found[0].channels)
    np.testing.assert_allclose(found[0].row, reference(x, mask), rtol=1e-12)


def test_it_adds_to_what_is_there(small_parts: None) -> None:
    first, second = normal(50, 37), normal(41, 37, seed=1).add(5)
    second[3, 3] = math.inf
    metric = ActivationStatisticsMetric(3)
    for batch, x in enumerate((first, second, first)):
        metric.update(1, x, None, batch)
    expected = reference(torch.cat([first, second, first]))
    expected[Row.BAD_BATCH] = 1
    rows, channels = metric.split(metric.compute())
    np.testing.assert_allclose(rows[1], expected, rtol=1e-11)
    assert torch.equal(rows[[0, 2]], empty_rows(2))
    assert channels[1][1].max() == np.abs(expected[[Row.MAXIMUM, Row.MINIMUM]]).max()


def test_numbers_that_are_not_aligned() -> None:
    x = normal(5, 6)
    raw = bytearray(b"!" + x.numpy().tobytes())
    odd = torch.frombuffer(raw, dtype=torch.float32, offset=1).view(5, 6)
    assert odd.data_ptr() % 4
    assert torch.equal(measure(odd).row, measure(x).row)


def test_numbers_that_are_negated_when_they_are_read() -> None:
    x = torch.complex(normal(5, 6), normal(5, 6, seed=1)).conj().imag
    assert x.is_neg()
    np.testing.assert_allclose(measure(x).row, reference(x.resolve_neg()), rtol=1e-12)


def test_from_two_threads_at_once() -> None:
    xs = [normal(600, 700, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(measure, xs))
    for found, x in zip(together, xs, strict=True):
        assert torch.equal(found.row, measure(x).row)


def program(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    start = "import torch\nfrom mi_crow_lightning.metrics import measure\nx = torch.arange(2.0**21).view(-1, 64)\n"
    variables = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    command, folder = [sys.executable, "-c", start + text], variables["PYTHONPATH"]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=120, check=True)


def test_a_second_process_compiles_nothing() -> None:
    assert choice.choice().add is not None  # here, or in an earlier process, it was compiled and kept
    text = "measure(x)\nfrom mi_crow_lightning.metrics.one_pass.in_numba import look\n"
    text += "print(sum(look.add.stats.cache_hits.values()), sum(look.add.stats.cache_misses.values()))"
    assert program(text).stdout.split() == ["1", "0"]


def test_it_is_loaded_where_a_hook_is_put_on_and_no_sooner() -> None:
    text = """import sys
from mi_crow_lightning import ActivationStatistics
from mi_crow_lightning.hooks import Layers
layers = Layers(torch.nn.Sequential(torch.nn.Identity()))
print("numba" in sys.modules)
layers.register_hook("0", ActivationStatistics())
print("numba" in sys.modules)"""
    assert program(text).stdout.split() == ["False", "True"]


def test_nothing_else_is_ever_compiled() -> None:
    assert choice.choice().add is not None
    with pytest.raises(TypeError, match="array"):
        look.add(np.zeros((2, 3)), 3, 2, 3, 0, 0, 0, math.inf, 0, 0, 0)


def test_after_a_fork() -> None:
    text = """import os
torch.set_num_threads(2)
before = measure(x).row
child = os.fork()
if not child:
    os._exit(0 if torch.equal(measure(x).row, before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    assert program(text).stdout.split() == ["0"]


def test_without_a_folder_to_write_to_numpy_measures(tmp_path: Path) -> None:
    copied = shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "static"))
    (copied / "metrics" / "one_pass" / "in_numba" / "__pycache__").touch()  # nobody, not even root, makes a folder here
    text = "print(measure(x).row[1].item())\nmeasure(x)"
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), os.devnull + "/none")
    done = program(text, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1", NUMBA_CACHE_DIR="", **nowhere)
    assert float(done.stdout) == (2**21 - 1) / 2
    assert done.stderr.count("SlowWarning") == 1
    assert "numpy measures them" in done.stderr and "set NUMBA_CACHE_DIR" in done.stderr


def test_without_numba() -> None:
    text = "import sys\nsys.modules['numba'] = None\nprint(measure(x).row[1].item())\n"
    text += "from mi_crow_lightning.metrics.one_pass.in_numba.choice import choice\nprint(choice())"
    done = program(text)
    mean, chosen = done.stdout.splitlines()
    assert float(mean) == (2**21 - 1) / 2
    assert "pip install 'mi-crow-lightning[fast]'" in chosen and not done.stderr


def test_the_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "off")
    assert choice.choice.__wrapped__() == (None, "MI_CROW_LIGHTNING_FAST is off")
    monkeypatch.setenv(choice.VARIABLE, "of")
    with pytest.raises(ValueError, match=r"MI_CROW_LIGHTNING_FAST.*'of'.*'off'"):
        choice.choice.__wrapped__()


def test_a_numba_that_does_not_compile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.warns(RuntimeWarning, match="NUMBA_DISABLE_JIT is set"):
        assert choice.choice.__wrapped__().add is None
