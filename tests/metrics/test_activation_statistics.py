"""The Metric: its state, its modes, its ranks. The arithmetic is tested in one_pass/test_measure.py."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mi_crow_lightning.metrics.activation import ROW_SIZE, Row, Summary, channel_statistics, empty_rows, measure
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.one_pass.buffers import empty_buffer


def batch(index: int, part: int) -> tuple[Tensor, Tensor]:
    """Activations (B, T, D) of one layer, and their mask (B, T); uneven over the parts."""
    generator = torch.Generator().manual_seed(100 * index + part)
    x = torch.randn(2 + part, 3, 4 + index % 3, generator=generator) + index  # layers of unequal width
    return x, torch.rand(2 + part, 3, generator=generator) > 0.3


def filled(layers: int = 3, parts: tuple[int, ...] = (0, 1, 2, 3)) -> ActivationStatisticsMetric:
    metric = ActivationStatisticsMetric(layers)
    for part in parts:
        for index in range(layers):
            metric.update(index, *batch(index, part))
    return metric


def mode(inference: bool) -> AbstractContextManager[object]:
    return torch.inference_mode(inference)


def both(index: int, parts: tuple[int, ...]) -> Summary:
    """The summary of several batches of one layer at once: the tokens that count, and nothing else."""
    tokens = [x[mask] for x, mask in (batch(index, part) for part in parts)]
    return measure(torch.cat(tokens))


def test_batches_add_up(rounding: float) -> None:
    metric = filled(3, (0, 1))
    rows, channels = metric.split(metric.compute())
    assert rows.shape == (3, ROW_SIZE)
    for index in range(3):
        expected = both(index, (0, 1))
        torch.testing.assert_close(rows[index], expected.row, rtol=rounding, atol=rounding)
        torch.testing.assert_close(channels[index], expected.channels, rtol=rounding, atol=rounding)


def test_a_layer_that_never_fired_is_empty_and_no_warning_comes() -> None:
    metric = ActivationStatisticsMetric(["a", "b"])
    assert torch.equal(metric.compute(), empty_rows(2).flatten())
    metric.update(1, torch.ones(3))
    assert metric.layers == ("a", "b")
    rows, channels = metric.split(metric.compute())
    assert rows[:, Row.COUNT].tolist() == [0, 3]
    assert [part.tolist() for part in channels] == [[[], []], [[1, 1, 1], [1, 1, 1]]]


def test_compute_is_a_copy_and_never_stale() -> None:
    metric = filled()
    first = metric.compute()
    first.zero_()
    assert metric.rows[0, Row.COUNT] > 0
    metric.rows[0, Row.COUNT] = 5
    assert metric.split(metric.compute())[0][0, Row.COUNT] == 5


@pytest.mark.usefixtures("rounding")
def test_a_layer_whose_width_changes_has_no_channels_and_all_else() -> None:
    metric = ActivationStatisticsMetric(2)
    for width in (3, 5, 3, 2):
        metric.update(0, torch.ones(2, width))
        metric.update(1, torch.ones(2, 4))
    rows, channels = metric.split(metric.compute())
    assert rows[:, Row.MIXED].tolist() == [1, 0] and rows[:, Row.COUNT].tolist() == [26, 32]
    assert all(math.isnan(value) for value in channel_statistics(rows[0], channels[0]).values())
    assert channel_statistics(rows[1], channels[1]) == {"dead_share": 0, "outlier_ratio": 1}
    assert metric.widths == [3, 4]
    metric.reset()
    assert metric.rows[:, Row.MIXED].tolist() == [0, 0] and metric.rows[:, Row.CHANNELS].tolist() == [3, 4]


@pytest.mark.usefixtures("rounding")
def test_the_first_batch_with_a_non_finite_element() -> None:
    metric = ActivationStatisticsMetric(3)
    for index, bad in enumerate(([], [4, 2], [7])):
        for number in (1, 4, 2, 7):
            x = torch.ones(2, 3)
            x[1, 1] = math.inf if number in bad else 1
            metric.update(index, x, torch.tensor([index != 2, True]), batch=number)
    assert metric.rows[:, Row.BAD_BATCH].tolist() == [math.inf, 2, 7]
    assert metric.rows[:, Row.NONFINITE].tolist() == [0, 2, 1]
    masked = ActivationStatisticsMetric(1)
    masked.update(0, torch.full((2, 3), math.nan), torch.tensor([False, False]), batch=1)
    assert masked.rows[0, Row.BAD_BATCH] == math.inf


@pytest.mark.parametrize("made_in", [False, True])
@pytest.mark.parametrize("reset_in", [False, True])
def test_every_order_of_inference_and_ordinary_mode(made_in: bool, reset_in: bool) -> None:
    with mode(made_in):
        metric = ActivationStatisticsMetric(1)
    for used_in in (True, False, True):
        with mode(used_in):
            metric.update(0, torch.ones(2))
            metric.compute()
    assert metric.rows[0, Row.COUNT] == 6
    with mode(reset_in):
        metric.reset()
        assert torch.equal(metric.buffer, empty_buffer([2]))
    for used_in in (False, True, False):
        with mode(used_in):
            metric.update(0, torch.ones(2))
            metric(0, torch.ones(2))
            metric.to("cpu").double()
    assert not metric.buffer.is_inference()
    assert metric.rows[0, Row.COUNT] == 12


@pytest.mark.usefixtures("rounding")
def test_an_activation_of_inference_mode_after_it() -> None:
    with torch.inference_mode():
        x = torch.ones(2, 3)
    metric = ActivationStatisticsMetric(1)
    metric.update(0, x)
    assert metric.rows[0, Row.COUNT] == 6


@pytest.mark.usefixtures("rounding")
def test_an_activation_in_a_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    metric = ActivationStatisticsMetric(1)
    metric.update(0, x * 2)
    assert not metric.rows.requires_grad
    assert torch.autograd.grad((x * 2).sum(), x)[0].tolist() == [2, 2, 2]


def test_forward_gives_the_batch_and_keeps_the_sum() -> None:
    metric = filled(1, (0,))
    x, mask = batch(0, 1)
    seen = metric(0, x, mask)
    torch.testing.assert_close(metric.split(seen)[0][0], measure(x, mask).row)
    torch.testing.assert_close(metric.compute(), filled(1, (0, 1)).compute(), rtol=1e-12, atol=1e-12)


def test_the_buffer_stays_float64() -> None:
    metric = filled()
    before = metric.compute()
    for changed in (
        metric.half(),
        metric.bfloat16(),
        metric.float(),
        metric.to(torch.float16),
        metric.to("cpu", torch.bfloat16),
        metric.set_dtype(torch.float32),
        torch.nn.ModuleList([metric]).half()[0],
        torch.nn.ModuleList([metric]).to(torch.float16)[0],
    ):
        assert isinstance(changed, ActivationStatisticsMetric)
        assert torch.equal(changed.buffer, before)
    metric.reset()
    assert metric.buffer.dtype == torch.float64


def test_moves_with_its_device() -> None:
    metric = ActivationStatisticsMetric(2).to("meta")
    assert metric.rows.is_meta
    metric.update(1, torch.empty(2, 3, device="meta"))
    metric.reset()
    assert metric.compute().is_meta


@pytest.mark.usefixtures("rounding")
def test_saves_and_goes_on() -> None:
    whole, half = filled(3, (0, 1, 2, 3)), filled(3, (0, 1))
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == ["buffer"]
    saved = state["buffer"].clone()
    resumed = ActivationStatisticsMetric(3)
    resumed.load_state_dict(state)
    for part in (2, 3):
        for index in range(3):
            resumed.update(index, *batch(index, part))
    assert torch.equal(resumed.compute(), whole.compute())
    assert torch.equal(state["buffer"], saved)  # what was loaded is not what is counted in


def test_refuses_the_state_of_other_layers() -> None:
    for saved, own in ((3, 2), (2, 3)):
        with pytest.raises(ValueError, match=rf"saved buffer has {len(filled(saved).buffer)} numbers.*of {own} layers"):
            ActivationStatisticsMetric(own).load_state_dict(filled(saved).state_dict())


def test_copies_and_pickles() -> None:
    metric = filled()
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        other.update(0, torch.ones(1))
        assert other.rows[0, Row.COUNT] == metric.rows[0, Row.COUNT] + 1


def test_refuses_wrong_layers() -> None:
    with pytest.raises(ValueError, match="more than once: a"):
        ActivationStatisticsMetric(["a", "b", "a"])
    with pytest.raises(ValueError, match="-1"):
        ActivationStatisticsMetric(-1)
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"no layer {index}.*0 to 1"):
            ActivationStatisticsMetric(2).update(index, torch.ones(1))


def test_a_failed_update_changes_nothing() -> None:
    metric = filled()
    before = metric.compute()
    with pytest.raises(ValueError, match="mask"):
        metric.update(0, torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
    assert torch.equal(metric.compute(), before)


PREFIXES = ("all_", "barrier", "broadcast", "gather", "reduce", "scatter")
COLLECTIVES = [name for name in dir(dist) if name.startswith(PREFIXES) and callable(getattr(dist, name))]


def counted(name: str, calls: list[str]) -> Callable[..., Any]:
    original = getattr(dist, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    return call


def on_a_rank(rank: int, world: int, folder: str) -> None:
    calls: list[str] = []
    for name in COLLECTIVES:
        setattr(dist, name, counted(name, calls))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    metric = ActivationStatisticsMetric(42)
    for part in (0, 1, 2) if rank == 0 else (3,):  # uneven
        for index in range(40):
            metric.update(index, *batch(index, part), batch=rank)
    metric.update(40 + rank, torch.full((5 + rank,), float(rank)), batch=rank)  # the other rank never sees it
    results = []
    for inference in (False, True):
        calls.clear()
        with mode(inference):
            results.append(metric.compute())
        # The widths are asked for once more: only then has every rank seen that all know them.
        assert calls == ["all_gather", "all_gather"], calls
        metric.update(0, torch.full((1, 4), 7.0), batch=5)  # the rank's own rows are back, and an ordinary tensor
    calls.clear()
    with torch.inference_mode():
        metric.sync()
        synced = metric.buffer.clone()
        metric.unsync()
    assert calls == ["all_gather"], calls
    metric.update(0, torch.full((1, 4), math.nan if rank else 7.0), batch=6)
    metric.update(3, torch.full((1, 9 - rank), 1.0), batch=6)  # other widths, now that all seemed to agree
    mixed = metric.compute()
    torch.save([*results, synced, mixed, metric.buffer], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process_in_two_collectives(tmp_path: Path) -> None:
    spawn = get_context("spawn")
    processes = [spawn.Process(target=on_a_rank, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = one_process()
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for step in range(3):
        assert torch.equal(ranks[0][step], ranks[1][step])
        torch.testing.assert_close(ranks[0][step], expected.buffer, rtol=1e-12, atol=1e-12)
        for _ in range(2):
            expected.update(0, torch.full((1, 4), 7.0))
    rows = expected.split(ranks[0][3])[0]
    assert rows[:, Row.MIXED].nonzero().tolist() == [[3]]
    assert (rows[0, Row.BAD_BATCH], rows[0, Row.NONFINITE]) == (6, 4)
    own = [expected.split(ranks[rank][4])[0][0] for rank in range(2)]
    assert own[0][Row.COUNT] + own[1][Row.COUNT] == rows[0, Row.COUNT]
    assert [row[Row.NONFINITE].item() for row in own] == [0, 4]


def one_process() -> ActivationStatisticsMetric:
    """All that both ranks see, at once."""
    metric = ActivationStatisticsMetric(42)
    for index in range(40):
        for part in range(4):
            metric.update(index, *batch(index, part))
    for rank in range(2):
        metric.update(40 + rank, torch.full((5 + rank,), float(rank)))
    return metric
