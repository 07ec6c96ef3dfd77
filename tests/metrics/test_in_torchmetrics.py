"""The metric among torchmetrics' own tools: collections that share states, merging, running windows, plots."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.aggregation import SumMetric
from torchmetrics.wrappers import Running

from mi_crow_lightning.metrics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.activation import statistics

Update = tuple[int, Tensor]


def updates() -> list[Update]:
    """The first activations show the width of one layer at a time."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(0, 5), (1, 9), (1, 9), (0, 5), (1, 9)]
    return [(index, torch.randn(3, width, generator=generator)) for index, width in shapes]


def filled(those: Iterable[Update], **options: Any) -> ActivationStatisticsMetric:
    metric = ActivationStatisticsMetric(2, **options)
    for one in those:
        metric.update(*one)
    return metric


def assert_same(found: tuple[Tensor, Sequence[Tensor]], metric: ActivationStatisticsMetric, exact: bool = True) -> None:
    """Rows and channels are those of a metric alone."""
    rows, channels = metric.split(metric.compute())
    assert [tuple(one.shape) for one in found[1]] == [tuple(one.shape) for one in channels]
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-12, "atol": 1e-12}
    for got, wanted in zip((found[0], *found[1]), (rows, *channels), strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True, **tolerance)


def collection(**changes: Any) -> MetricCollection:
    return MetricCollection({"one": ActivationStatisticsMetric(2), "two": ActivationStatisticsMetric(2)}, **changes)


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("look", ["at the end", "after each update"])
def test_two_in_a_collection_share_a_state_of_any_widths(groups: bool, look: str) -> None:
    both = collection(compute_groups=groups)
    for count, one in enumerate(updates(), start=1):
        both.update(*one)
        if look == "after each update" or count == len(updates()):
            results = both.compute()
            for name in ("one", "two"):
                assert_same(both[name].split(results[name]), filled(updates()[:count]))
    assert len(both.compute_groups) == (1 if groups else 0)


def test_a_collection_after_reset_copy_and_state_dict() -> None:
    both = collection()
    for one in updates():
        both.update(*one)
    saved = copy.deepcopy(both.state_dict())
    twin = both.clone()
    both.reset()
    for one in updates()[1:]:  # the first width is not seen again, and is known
        both.update(*one)
        twin.update(*one)
    alone = filled(updates())
    alone.reset()
    for one in updates()[1:]:
        alone.update(*one)
    for name in ("one", "two"):
        assert_same(both[name].split(both.compute()[name]), alone)
        assert_same(twin[name].split(twin.compute()[name]), filled([*updates(), *updates()[1:]]))
    loaded = collection()
    both.persistent()
    loaded.load_state_dict(saved)
    for name in ("one", "two"):
        assert_same(loaded[name].split(loaded[name].compute()), filled(updates()))


def test_widths_of_another_state_are_found_though_its_length_is_the_same() -> None:
    metric, swapped = filled([(0, torch.ones(2, 5)), (1, torch.ones(2, 9))]), ActivationStatisticsMetric(2)
    for index, width in ((0, 9), (1, 5)):
        swapped.update(index, torch.ones(2, width))
    metric.buffer = swapped.buffer.clone()
    assert metric.widths == [9, 5]
    assert_same(metric.split(metric.compute()), swapped)
    metric.reset()
    assert metric.widths == [9, 5] and len(metric.buffer) == len(swapped.buffer)


def test_an_earlier_result_is_split_by_its_own_widths() -> None:
    metric = filled(updates()[:1])
    early = metric.compute().clone()
    metric.update(*updates()[1])
    assert_same(metric.split(early), filled(updates()[:1]))


def test_a_reset_or_a_move_reads_nothing_back() -> None:
    """On meta there is nothing to read, as on a GPU there is a wait."""
    metric = filled(updates()).to("meta")
    assert metric.widths == [5, 9]
    metric.reset()
    assert metric.widths == [5, 9]


def test_a_collection_beside_another_kind_of_metric() -> None:
    class Total(SumMetric):
        def update(self, index: int, x: Tensor) -> None:
            super().update(x)

    both = MetricCollection({"layers": ActivationStatisticsMetric(2), "sum": Total()})
    for one in updates():
        both.update(*one)
    assert_same(both["layers"].split(both.compute()["layers"]), filled(updates()))


def test_forward_gives_the_batch_and_keeps_the_sum() -> None:
    metric = ActivationStatisticsMetric(2)
    for count, one in enumerate(updates()):
        alone = filled(updates()[:count])
        alone.reset()  # it knows the same widths
        alone.update(*one)
        assert_same(metric.split(metric(*one)), alone)
    rows, channels = metric.split(metric.compute())
    assert_same((rows, channels), filled(updates()), exact=False)


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("as_dict", [False, True])
def test_states_merge_whatever_their_widths(count: int, as_dict: bool) -> None:
    metric, other = filled(updates()[:count]), filled(updates()[count:])
    before = other.compute().clone()
    metric.merge_state({"buffer": other.buffer} if as_dict else other)
    assert_same(metric.split(metric.compute()), filled(updates()), exact=False)
    assert torch.equal(other.compute(), before)
    metric.update(*updates()[0])
    metric.reset()
    assert metric.widths == [5, 9] and metric.rows[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (ActivationStatisticsMetric(3), r"a metric of \('0', '1', '2'\) cannot be merged into one of \('0', '1'\)"),
        (SumMetric(), r"takes an ActivationStatisticsMetric or \{'buffer': buffer\}"),
        ({"rows": torch.ones(2)}, r"takes an ActivationStatisticsMetric or \{'buffer': buffer\}"),
        ({"buffer": torch.ones(7)}, "the saved buffer has 7 numbers, which are not those of 2 layers"),
        (None, "takes an ActivationStatisticsMetric"),
    ],
)
def test_other_states_are_not_merged(state: Any, message: str) -> None:
    metric = filled(updates())
    before = metric.compute().clone()
    with pytest.raises(ValueError, match=message):
        metric.merge_state(state)
    assert torch.equal(metric.compute(), before)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("call", ["update", "forward"])
def test_a_running_window(window: int, call: str) -> None:
    running = Running(ActivationStatisticsMetric(2), window)
    for count, one in enumerate(updates(), start=1):
        running.update(*one) if call == "update" else running(*one)
        found = running.base_metric.split(running.compute())
        last = filled(updates()[max(0, count - window) : count])
        expected = statistics(last.rows)
        for name, values in statistics(found[0]).items():
            torch.testing.assert_close(values, expected[name], rtol=1e-12, atol=1e-12, equal_nan=True)
    running.reset()
    running.update(*updates()[0])
    assert statistics(running.base_metric.split(running.compute())[0])["nonfinite_count"].tolist() == [0, 0]


def test_plots() -> None:
    """matplotlib is no dependency of the package."""
    metric = filled(updates())
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    means = statistics(metric.rows)["mean"].tolist()
    _, ax = metric.plot()
    assert [line.get_ydata()[0] for line in ax.lines] == means
    assert [line.get_label() for line in ax.lines] == ["layer 0", "layer 1"]
    early = filled(updates()[:3])
    _, ax = metric.plot([early.compute(), metric.compute()], statistic="rms")
    expected = torch.stack([statistics(one.rows)["rms"] for one in (early, metric)], 1).tolist()
    assert [list(line.get_ydata()) for line in ax.lines] == expected
    both = collection()
    for one in updates():
        both.update(*one)
    assert len(both.plot()) == 2


def test_a_plot_of_what_is_not_read_of_rows() -> None:
    with pytest.raises(KeyError, match="dead_share"):
        filled(updates()).plot(statistic="dead_share")
    with pytest.raises(KeyError, match="nothing"):
        filled(updates()).plot(statistic="nothing")
