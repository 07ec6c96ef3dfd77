"""What is written to TensorBoard, read back with TensorBoard's own code."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.loggers import summary_writer, write_event, write_layout
from mi_crow_lightning.metrics.histogram import Histogram
from tests.loggers.written import EDGES, MIDDLE, Board, drawn, events, scalar, shown, write_one

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")


def test_one_event_a_step_with_all_its_values(tmp_path: Path) -> None:
    readings = [scalar("m/h.0", 0.1), scalar("m/h.1", -3.0), drawn(MIDDLE)]
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (3, 53, 2**40):
            write_event(writer, readings, step)
    written = events(tmp_path)
    assert [event.step for event in written] == [3, 53, 2**40]
    for event in written:
        assert [value.tag for value in event.summary.value] == ["m/h.0", "m/h.1", "activations/h.0"]


FINITE32 = st.floats(width=32) | st.floats()


@settings(max_examples=40)
@given(st.lists(FINITE32, min_size=1, max_size=20))
def test_scalars_come_back_as_float32(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("run")
    with SummaryWriter(str(folder)) as writer:
        write_event(writer, [scalar(f"m/{i}", value) for i, value in enumerate(values)], 1)
    (event,) = events(folder)
    read = [make_ndarray(value.tensor).item() for value in event.summary.value]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.float32(read), np.array(values).astype(np.float32))


def test_lightnings_logger_and_the_event_accumulator(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    writer = summary_writer(logger)
    assert writer is logger.experiment
    write_event(writer, [scalar("m/h.0", math.nan), scalar("m/h.1", -math.inf), drawn(MIDDLE)], 9)
    logger.finalize("success")
    read = EventAccumulator(logger.log_dir).Reload()
    assert math.isnan(read.Scalars("m/h.0")[0].value)
    assert [(e.step, e.value) for e in read.Scalars("m/h.1")] == [(9, -math.inf)]
    (histogram,) = (e.histogram_value for e in read.Histograms("activations/h.0"))
    assert (histogram.min, histogram.max, histogram.num) == (-1.75, 1.5, 8.0)
    assert (histogram.sum, histogram.sum_squares) == (2.0, 11.0)
    # Empty bins at the ends are gone, the two in the middle are one.
    assert histogram.bucket_limit == [-1.0, 1.0, 1.5]
    assert histogram.bucket == [3.0, 0.0, 5.0]


def test_the_drawn_bins_run_from_minimum_to_maximum(tmp_path: Path) -> None:
    assert write_one(tmp_path, MIDDLE).tolist() == [[-1.75, -1.0, 3.0], [-1.0, 1.0, 0.0], [1.0, 1.5, 5.0]]


def test_outermost_bins_reach_what_was_clamped_into_them(tmp_path: Path) -> None:
    histogram = Histogram(EDGES, (1.0, 0.0, 0.0, 0.0, 0.0, 1.0), -9.0, 99.0, 2.0, 90.0, 9882.0)
    assert write_one(tmp_path, histogram).tolist() == [[-9.0, -2.0, 1.0], [-2.0, 2.0, 0.0], [2.0, 99.0, 1.0]]


@pytest.mark.parametrize(("only", "value"), [(0, -9.0), (5, 9.0)])
def test_all_beyond_one_end_is_drawn_where_it_was(tmp_path: Path, only: int, value: float) -> None:
    counts = tuple(2.0 if i == only else 0.0 for i in range(6))
    histogram = Histogram(EDGES, counts, value, value, 2.0, 2 * value, 2 * value**2)
    assert write_one(tmp_path, histogram).tolist() == [[value, value, 2.0]]


def test_inner_bins_do_not_stretch_to_a_minimum_that_was_not_counted(tmp_path: Path) -> None:
    assert write_one(tmp_path, MIDDLE._replace(minimum=-9.0, maximum=9.0))[[0, -1]].tolist() == [
        [-2.0, -1.0, 3.0],
        [1.0, 2.0, 5.0],
    ]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("edges", [EDGES, (-math.inf, *EDGES[1:-1], math.inf)])
def test_moments_that_are_not_finite_leave_the_picture_finite(
    tmp_path: Path, odd: float, edges: tuple[float, ...]
) -> None:
    histogram = Histogram(edges, (1.0, 1.0, 0.0, 0.0, 2.0, 1.0), odd, odd, 5.0, odd, odd)
    bins = write_one(tmp_path, histogram)
    assert np.isfinite(bins).all()
    assert bins[:, 2].tolist() == [1.0, 1.0, 0.0, 2.0, 1.0]
    assert (bins[:, 0] <= bins[:, 1]).all()


@pytest.mark.parametrize(
    ("counts", "minimum", "maximum"),
    [
        ((0, 0, 0, 0, 0, 2), 9.0, math.inf),  # one infinity, the other beyond the last edge
        ((2, 0, 0, 0, 0, 0), -math.inf, -9.0),
        ((0, 1, 0, 0, 1, 0), -0.99, 1.01),  # moments rounded into the next bin
        ((0, 1, 0, 0, 1, 0), -1.5, 0.99),
    ],
)
def test_no_bin_runs_backwards(tmp_path: Path, counts: tuple[float, ...], minimum: float, maximum: float) -> None:
    bins = write_one(tmp_path, Histogram(EDGES, counts, minimum, maximum, 2.0, 0.0, 0.0))
    assert np.isfinite(bins).all()
    assert (bins[:, 0] <= bins[:, 1]).all()


def test_a_constant_is_one_bin_without_width(tmp_path: Path) -> None:
    histogram = Histogram(EDGES, (0.0, 0.0, 0.0, 7.0, 0.0, 0.0), 0.5, 0.5, 7.0, 3.5, 1.75)
    assert write_one(tmp_path, histogram).tolist() == [[0.5, 0.5, 7.0]]


@st.composite
def histograms(draw: st.DrawFn) -> tuple[list[float], Histogram]:
    """Numbers, and their histogram by numpy."""
    numbers = draw(st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=50))
    edges = sorted(draw(st.sets(st.floats(-12, 12, width=16), min_size=2, max_size=12)))
    data = np.array(numbers)
    counts, _ = np.histogram(np.clip(data, edges[0], edges[-1]), edges)
    moments = (data.min(), data.max(), float(len(data)), data.sum(), (data**2).sum())
    return numbers, Histogram(tuple(edges), tuple(counts.astype(float)), *map(float, moments))


@settings(max_examples=60)
@given(histograms())
def test_every_drawn_bin_holds_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, given: tuple[list[float], Histogram]
) -> None:
    numbers, histogram = given
    bins = write_one(tmp_path_factory.mktemp("run"), histogram)
    assert bins[:, 2].sum() == histogram.total
    assert (bins[0, 0], bins[-1, 1]) == (histogram.minimum, histogram.maximum)
    assert bins[0, 2] > 0 and bins[-1, 2] > 0
    assert all(left[1] == right[0] for left, right in pairwise(bins))
    assert not any(left[2] == right[2] == 0 for left, right in pairwise(bins))
    for left, right, count in bins[:-1]:
        assert count == sum(left <= number < right for number in numbers)


def test_nothing_to_draw_writes_no_event(tmp_path: Path) -> None:
    empty = Histogram(EDGES, (0.0,) * 6, math.inf, -math.inf, 0.0, 0.0, 0.0)
    with SummaryWriter(str(tmp_path)) as writer:
        write_event(writer, [], 0)
        write_event(writer, [drawn(empty)], 1)
        write_event(writer, [drawn(empty), scalar("m/h.0", 1.0)], 2)
    assert [(e.step, len(e.summary.value)) for e in events(tmp_path)] == [(2, 1)]


def test_edges_that_do_not_fit_the_bins_are_refused_by_tag(tmp_path: Path) -> None:
    with (
        SummaryWriter(str(tmp_path)) as writer,
        pytest.raises(ValueError, match=r"'a/h\.7' has 6 edges and 6"),
    ):
        write_event(writer, [drawn(MIDDLE._replace(edges=EDGES[1:]), "a/h.7")], 0)


def test_a_closed_writer_opens_again(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.close()
    write_event(writer, [scalar("m/h.0", 1.0)], 4)
    writer.close()
    assert [event.step for event in events(tmp_path)] == [4]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TensorBoardLogger(tmp_path)
    assert summary_writer(logger) is None
    write_event(logger.experiment, [scalar("m/h.0", 1.0)], 0)
    write_layout(logger.experiment, {"activations": ["mean"]})
    assert list(tmp_path.rglob("*")) == []


def test_only_a_summary_writer_is_one(tmp_path: Path) -> None:
    assert summary_writer(CSVLogger(tmp_path)) is None


class PublicOnly:
    """A writer as a later torch may have it: without the private method."""

    def __init__(self, file_writer: Any) -> None:
        self.file_writer = file_writer


def test_without_the_private_method_the_public_attribute_serves(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_event(PublicOnly(writer.file_writer), [scalar("m/h.0", 1.0)], 4)
    assert [event.step for event in events(tmp_path)] == [4]


def test_without_either_the_error_names_the_writer() -> None:
    with pytest.raises(RuntimeError, match="PublicOnly has neither _get_file_writer"):
        write_event(PublicOnly(None), [scalar("m/h.0", 1.0)], 4)


def test_tensorboardx_gets_the_same_event(tmp_path: Path) -> None:
    tensorboardx = pytest.importorskip("tensorboardX")
    with tensorboardx.SummaryWriter(str(tmp_path)) as writer:
        assert summary_writer(type("Logger", (), {"experiment": writer})()) is writer
        write_event(writer, [scalar("m/h.0", 0.5), drawn(MIDDLE)], 4)
        write_layout(writer, {"activations": ["mean"]})
    assert len(shown(tmp_path)) == 3
    assert Board(tmp_path).layout()["category"][0]["title"] == "activations"
