"""Further sums: measured by every form, merged as declared, saved and loaded, and refused where they are wrong."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.metrics import LARGEST, SMALLEST, Merge, Statistic, Sum, register, statistics
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.known_statistics import STATISTICS, known_names, sums_of
from mi_crow_lightning.metrics.one_pass import in_graph, on_cpu
from mi_crow_lightning.metrics.one_pass import measure as one_pass
from mi_crow_lightning.metrics.one_pass.graph_sums import LayerSums, take_sums
from mi_crow_lightning.metrics.rows import ROW_SIZE, empty_rows, merge_all, with_sums
from mi_crow_lightning.metrics.summary import Group
from tests.metrics.conftest import Form, measure_as_traced

pytestmark = pytest.mark.usefixtures("own_statistics")


def _cubes(x: Tensor, keep: Tensor) -> Tensor:
    return x.abs().pow(3).sum()


def _nearest(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, (x - 1).abs(), torch.inf).amin()


def _longest(x: Tensor, keep: Tensor) -> Tensor:
    return x.abs().sum(1).amax()


def _log_of_exponentials(x: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, x, -torch.inf).flatten().logsumexp(0)


CUBES = Sum("cubes", _cubes)
NEAREST = Sum("nearest", _nearest, SMALLEST)
LONGEST = Sum("longest", _longest, LARGEST)
EXPONENTIALS = Sum("exponentials", _log_of_exponentials, Merge(-math.inf, lambda stacked: stacked.logsumexp(0)))
SUMS = (CUBES, NEAREST, LONGEST, EXPONENTIALS)


def numpys(tokens: np.ndarray) -> list[float]:
    """The sums of tokens ``(N, D)``, in float64, over the finite elements."""
    x = tokens[np.isfinite(tokens)]
    absolute = np.abs(np.where(np.isfinite(tokens), tokens, 0))
    return [(absolute**3).sum(), np.abs(x - 1).min(), absolute.sum(1).max(), np.log(np.exp(x).sum())]


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FASTER_NUMPY: dict[str, Callable[..., float]] = {
    "cubes": lambda x: (np.abs(x).astype(np.float64) ** 3).sum(),
    "nearest": lambda x: np.abs(x.astype(np.float64) - 1).min(),
}
FASTER_GRAPH: dict[str, Callable[..., Tensor]] = {"longest": lambda x, keep: x.abs().sum(1).amax()}


@pytest.mark.parametrize("faster", [False, True])
@pytest.mark.parametrize("mask_dims", [None, 1, 2, 3])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("chunk", [50, 2**18])
def test_every_form_measures_them(
    monkeypatch: pytest.MonkeyPatch, form: Form, faster: bool, mask_dims: int | None, bad: bool, chunk: int
) -> None:
    monkeypatch.setattr(one_pass, "_CHUNK_CPU", chunk)
    monkeypatch.setattr(on_cpu, "_CHUNK", chunk // 2)
    if faster:
        on_cpu.SUMS.update(FASTER_NUMPY)
        in_graph.SUMS.update(FASTER_GRAPH)
    x = tokens_of(6, 5, 9)
    if bad:
        x[0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    mask = None if mask_dims is None else tokens_of(*x.shape[:mask_dims], seed=1) > 0
    row, channels = form.measure(x, mask, Group.ALL, SUMS)
    kept = x if mask is None else torch.where(mask.reshape(*mask.shape, *[1] * (3 - mask.dim())), x, math.nan)
    expected = numpys(kept.double().numpy().reshape(-1, 9))
    np.testing.assert_allclose(row[ROW_SIZE:], expected, rtol=1e-6 if faster else 1e-12)
    plain = form.measure(x, mask)
    assert torch.equal(row[:ROW_SIZE], plain.row) and torch.equal(channels, plain.channels)


def _refuses(x: Tensor, keep: Tensor) -> Tensor:
    raise AssertionError("the form knows this sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numpy_measures_what_it_knows_and_torch_only_the_rest(dtype: torch.dtype) -> None:
    on_cpu.SUMS["known"] = lambda x: float(x.size)
    seen = []

    def rest(x: Tensor, keep: Tensor) -> Tensor:
        seen.append((x.dtype, tuple(x.shape), bool(keep.all())))
        return x.sum()

    x = tokens_of(6, 3).to(dtype)
    row = one_pass.measure(x, torch.arange(6) > 1, sums=(Sum("rest", rest), Sum("known", _refuses))).row
    assert seen == [(torch.float64, (4, 3), True)]  # the tokens that count
    assert row[ROW_SIZE:].tolist() == [pytest.approx(x[2:].double().sum().item(), rel=1e-12), 12]
    x[0, 0] = math.nan
    with pytest.raises(AssertionError, match="form knows"):
        one_pass.measure(x, sums=(Sum("known", _refuses),))  # numpy does not take what is not finite


def test_a_graph_measures_what_it_knows() -> None:
    in_graph.SUMS["known"] = lambda x, keep: keep.sum() + x.dtype.itemsize
    x = torch.tensor([[1.0, math.nan, 2.0]])
    known = Sum("known", _refuses, SMALLEST)
    assert measure_as_traced(x, None, Group.COUNTS, (CUBES, known)).row[ROW_SIZE:].tolist() == [9, 2 + 4]
    assert measure_as_traced(x * math.nan, None, Group.COUNTS, (known,)).row[-1] == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_that_writes_does_not_reach_the_model(form: Form, dtype: torch.dtype) -> None:
    x = tokens_of(4, 3).to(dtype)
    before = x.clone()
    form.measure(x, None, Group.ALL, (Sum("writes", lambda x, keep: x.zero_().sum()),))
    assert torch.equal(x, before)
    on_cpu.SUMS["writes"] = lambda x: x.fill(0)  # type: ignore[func-returns-value]
    if form.name == "at_hand":
        with pytest.raises(ValueError, match="read-only"):
            form.measure(x, None, Group.ALL, (Sum("writes", _refuses),))
        assert torch.equal(x, before)


def test_of_nothing_it_is_empty(form: Form) -> None:
    def never(x: Tensor, keep: Tensor) -> Tensor:
        return x.sum() + 7

    sums = (Sum("never", never), NEAREST, LONGEST)
    for x in (torch.full((2, 3), math.nan), torch.zeros(0, 3)):
        assert form.measure(x, None, Group.ALL, sums).row[ROW_SIZE:].tolist() == [0, math.inf, -math.inf]
    masked = form.measure(torch.ones(2, 3), torch.zeros(2, dtype=torch.bool), Group.ALL, sums)
    assert masked.row[ROW_SIZE:].tolist() == [0, math.inf, -math.inf]


def test_it_must_be_one_number(form: Form) -> None:
    with pytest.raises(ValueError, match=r"sum 'wide' has the shape \(3,\)"):
        form.measure(torch.ones(2, 3), None, Group.ALL, (Sum("wide", lambda x, keep: x.sum(0)),))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_rows_merge_to_the_whole(order: list[int]) -> None:
    x = tokens_of(40, 7)
    rows = torch.stack([one_pass.measure(x[10 * i : 10 * i + 10], sums=SUMS).row for i in order])
    whole = one_pass.measure(x, sums=SUMS).row
    empty = empty_rows(1, sums=SUMS)
    for merged in (merge_all(rows, SUMS), merge_all(torch.cat([empty, rows, empty]), SUMS)):
        torch.testing.assert_close(merged, whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=rf"\(\.\.\., {ROW_SIZE}\)"):
        merge_all(rows)


def test_a_metric_keeps_them_beside_channels_of_any_width(rounding: float) -> None:
    metric = ActivationStatisticsMetric(3, sums=SUMS)
    other = LayerSums(Group.ALL, torch.device("cpu"), SUMS)
    parts = [[tokens_of(5, 4 + index, seed=10 * index + part) for part in range(3)] for index in range(3)]
    for index in (2, 0, 1):
        for part in parts[index][:2]:
            metric.update(index, part)
    other.add(parts[1][2], None, None)
    taken = take_sums([LayerSums(Group.ALL, torch.device("cpu"), SUMS), other, other])
    assert taken is not None
    metric.absorb(taken[0], [0, 5, 5])  # layer 2 has six channels: they are mixed now, and sums go on
    rows, channels = metric.split(metric.compute())
    assert rows.shape == (3, ROW_SIZE + 4) and [part.shape[1] for part in channels] == [4, 5, 6]
    seen = [parts[0][:2], parts[1], [*parts[2][:2], torch.cat([parts[1][2], torch.full((5, 1), math.nan)], 1)]]
    for row, tokens in zip(rows, seen, strict=True):
        same = [torch.nn.functional.pad(one, (0, 6 - one.shape[1]), value=math.nan) for one in tokens]
        np.testing.assert_allclose(row[ROW_SIZE:], numpys(torch.cat(same).double().numpy()), rtol=1e-12)
    again = ActivationStatisticsMetric(3, sums=SUMS)
    again.load_state_dict(metric.state_dict())
    assert torch.equal(again.buffer, metric.buffer)
    with pytest.raises(ValueError, match=r"not those of 3 layers with the sums \['cubes'\]"):
        ActivationStatisticsMetric(3, sums=(CUBES,)).load_state_dict(metric.state_dict())
    metric.reset()
    assert torch.equal(metric.rows[:, ROW_SIZE:], empty_rows(3, sums=SUMS)[:, ROW_SIZE:])


def declare() -> None:
    register(Statistic("nearest_to_one", lambda s: s["nearest"], sums=(NEAREST,)))
    register(Statistic("cubic_mean", lambda s: (s["cubes"] / s["count"]) ** (1 / 3), sums=(CUBES,)))


def detector_on(names: list[str]) -> tuple[nn.Module, ActivationStatistics]:
    model, detector = nn.Sequential(nn.Identity()), ActivationStatistics("0", statistics=names, histogram=False)
    Layers(model).register_hook(None, detector)
    return model, detector


def read(detector: ActivationStatistics) -> dict[str, float]:
    return {reading.name: reading.value for reading in detector.readings()}


def test_a_detector_s_checkpoints() -> None:
    declare()
    x, y = tokens_of(8, 3), tokens_of(5, 3, seed=1)
    both, one, plain = ["cubic_mean", "mean", "nearest_to_one"], ["nearest_to_one", "mean"], ["mean"]
    states: dict[str, Any] = {}
    for name, names in (("both", both), ("one", one), ("plain", plain)):
        model, detector = detector_on(names)
        model(x)
        states[name] = detector.state_dict()
    assert "sums" not in states["plain"] and states["plain"]["rows"][""].shape == (1, ROW_SIZE)
    assert states["both"]["sums"] == ["cubes", "nearest"]
    cubic = ((torch.cat([x, y]).double().abs() ** 3).mean() ** (1 / 3)).item()
    nearest = (torch.cat([x, y]).double() - 1).abs().min().item()
    for saved in states:
        model, detector = detector_on(both)
        lost = {"both": "", "one": r"\['cubes'\]", "plain": r"\['cubes', 'nearest'\]"}[saved]
        with pytest.warns(RuntimeWarning, match=lost) if lost else warnings.catch_warnings():
            detector.load_state_dict(states[saved])
        model(y)
        found = read(detector)
        assert found["mean"] == pytest.approx(torch.cat([x, y]).double().mean().item(), rel=1e-12)
        for name, value in (("cubic_mean", cubic), ("nearest_to_one", nearest)):
            unknown = saved == "plain" or (saved == "one" and name == "cubic_mean")
            assert math.isnan(found[name]) if unknown else found[name] == pytest.approx(value, rel=1e-12), (saved, name)
        detector.reset()
        model(y)  # all is known again
        assert read(detector)["nearest_to_one"] == pytest.approx((y.double() - 1).abs().min().item(), rel=1e-12)
    _, detector = detector_on(plain)
    detector.load_state_dict(states["both"])  # sums that it does not need
    assert detector.state_dict()["rows"][""].shape == (1, ROW_SIZE)


def test_ranks_of_a_checkpoint_are_joined() -> None:
    declare()
    x = tokens_of(9, 3)
    states = []
    for part in (x[:2], x[2:]):
        model, detector = detector_on(["cubic_mean", "nearest_to_one"])
        model(part)
        states.append(detector.state_dict())
    _, detector = detector_on(["cubic_mean", "nearest_to_one"])
    detector.load_state_dict(detector._joined_state(states, rank=0))
    cubic = ((x.double().abs() ** 3).mean() ** (1 / 3)).item()
    assert read(detector) == pytest.approx(
        {"cubic_mean": cubic, "nearest_to_one": (x.double() - 1).abs().min().item()}, rel=1e-12
    )


def test_rows_that_counted_nothing_lack_nothing() -> None:
    rows = with_sums(empty_rows(2), [], SUMS)  # a warning would be an error here
    assert torch.equal(rows, empty_rows(2, sums=SUMS))
    with pytest.raises(ValueError, match=r"\['cubes'\] have 81 numbers, not 80"):
        with_sums(empty_rows(2), ["cubes"], SUMS)


def test_registered_statistics_are_measured_only_where_they_are_asked_for() -> None:
    declare()
    assert known_names() == (*STATISTICS, "nearest_to_one", "cubic_mean")
    assert ActivationStatistics("0").statistics == STATISTICS and sums_of(STATISTICS) == ()
    assert ActivationStatistics("0", statistics=["cubic_mean"]).statistics == ("cubic_mean",)
    with pytest.raises(
        ValueError, match=r"'cubic_maen' is not known.*'nearest_to_one', 'cubic_mean'. Did you mean 'cubic_mean'"
    ):
        ActivationStatistics("0", statistics=["cubic_maen"])
    with pytest.raises(KeyError, match="cubes"):
        statistics(empty_rows(1), names=["cubic_mean"])
    # To a spawned process a detector takes names alone; there the module that registers is imported again.
    assert pickle.loads(pickle.dumps(ActivationStatistics("0", statistics=["cubic_mean"]))).statistics == (
        "cubic_mean",
    )
    with pytest.raises(KeyError, match=r"no statistic 'quartic_mean' is known in this process: register it"):
        sums_of(["quartic_mean"])


def test_a_registration_that_would_mean_two_things() -> None:
    for name in ("mean", "histogram", "channel_rms"):
        with pytest.raises(ValueError, match=f"built-in reading is named '{name}'"):
            register(Statistic(name, lambda s: s["count"]))
    for wrong in ("", "a/b", "a b", "2nd"):
        with pytest.raises(ValueError, match="letters, digits and underscores"):
            Statistic(wrong, lambda s: s["count"])
        with pytest.raises(ValueError, match="letters, digits and underscores"):
            Sum(wrong, _cubes)
    with pytest.raises(ValueError, match="built-in sum is named 'norm_sum'"):
        register(Statistic("own", lambda s: s["norm_sum"], sums=(Sum("norm_sum", _cubes),)))
    assert known_names() == STATISTICS
    declare()
    declare()  # as when a notebook's cell runs twice
    register(Statistic("other", lambda s: s["cubes"], sums=(Sum("cubes", _longest),)))
    with pytest.raises(ValueError, match="'other' has a sum 'cubes', and another statistic has a different sum"):
        ActivationStatistics("0", statistics=["cubic_mean", "other"])
