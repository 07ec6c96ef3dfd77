"""The statistics in a compiled graph: no break, few compilations, the numbers of plain torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mi_crow_lightning import ActivationStatistics
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.metrics.activation import EDGES, Row, measure
from mi_crow_lightning.metrics.activation_statistics import ActivationStatisticsMetric
from mi_crow_lightning.metrics.one_pass import in_graph
from mi_crow_lightning.metrics.summary import Group
from tests.fresh_graphs import fresh_graphs  # noqa: F401

WIDTH = 12
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
INDUCTOR = pytest.param("inductor", marks=pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler"))


class Stack(nn.Module):
    """Layers, of which hooks see the outputs."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def batches(*shapes: tuple[int, int]) -> Iterator[Tensor]:
    for seed, shape in enumerate(shapes):
        x = torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))
        x[0, 0, 0] = torch.inf if seed == 1 else 1
        yield x


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_measure_is_one_graph(dtype: torch.dtype) -> None:
    compiled = torch.compile(measure, backend="aot_eager", fullgraph=True)
    x = torch.randn(6, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, :3] = torch.tensor([torch.nan, 0.0, 2.0**15])
    mask = torch.arange(7) < torch.arange(1, 7)[:, None]
    for found, expected in zip(compiled(x, mask), measure(x, mask), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("groups", [Group.COUNTS, Group.MOMENTS | Group.BINS, Group.EXTREMES | Group.TOKENS])
def test_groups_without_a_mask(groups: Group) -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(lambda x: measure(x, groups=groups), backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(x), measure(x, groups=groups), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accelerators_count_what_the_cpu_counts(dtype: torch.dtype) -> None:
    edges = torch.tensor(EDGES, dtype=dtype)
    x = torch.cat([edges, edges.nextafter(torch.zeros(())), edges.nextafter(2 * edges), torch.zeros(5)])[None]
    for found, expected in zip(in_graph._added(x), (in_graph._compared(x), in_graph._compared(-x)), strict=True):
        assert found.tolist() == expected.tolist()


def watched(metric: ActivationStatisticsMetric, batch: Tensor, mask: Callable[[Tensor], Tensor]) -> Stack:
    """A model with plain torch hooks that call the metric."""
    model = Stack(len(metric.layers))

    def hook(index: int) -> Callable[..., None]:
        return lambda module, args, output: metric.accumulate(index, output, mask(output), batch)

    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(hook(index))
    return model


def every_second_token(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[1], device=x.device) % 2 == 0).expand(x.shape[:2])


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_hook_that_accumulates_is_compiled_once(backend: str) -> None:
    buffers, losses = [], []
    counter = CompileCounterWithBackend(backend)
    for compiled in (False, True):
        metric, batch = ActivationStatisticsMetric(2), torch.zeros((), dtype=torch.int64)
        for index in range(2):
            metric.make_room(index, WIDTH)
        model = watched(metric, batch, every_second_token)
        call: Any = torch.compile(model, backend=counter, fullgraph=True) if compiled else model
        for number, x in enumerate(batches((4, 5), (4, 5), (4, 5))):
            batch.fill_(number)
            loss = call(x).nan_to_num().sum()
            loss.backward()
            losses.append(loss.detach())
        buffers.append(metric.compute())
    assert counter.frame_count == 1
    assert_same(buffers[1], buffers[0])
    assert_same(torch.stack(losses[3:]), torch.stack(losses[:3]))
    rows = metric.split(buffers[1])[0]
    assert rows[:, Row.BAD_BATCH].tolist() == [1, 1]  # the batch is read as the graph runs, not as it is made
    assert (rows[:, Row.TOKENS] == 3 * 4 * 3).all()


def test_other_shapes_are_compiled_at_most_twice_more() -> None:
    metric = ActivationStatisticsMetric(1)
    model = watched(metric, torch.zeros(()), every_second_token)
    counter = CompileCounterWithBackend("aot_eager")
    model(next(batches((1, 2))))  # finds the widths
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    shapes = [(4, 6), (4, 8), (3, 6), (5, 4), (2, 10), (7, 12)]
    for x in batches(*shapes):
        compiled(x)
    assert counter.frame_count <= 3
    assert metric.rows[0, Row.TOKENS] == 1 + sum(b * t / 2 for b, t in shapes)


def test_inference_first_and_training_after() -> None:
    metric = ActivationStatisticsMetric(1)
    model = watched(metric, torch.zeros(()), every_second_token)
    model(next(batches((4, 6))))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        compiled(next(batches((4, 6))))
    compiled(next(batches((4, 6)))).sum().backward()
    assert not metric.buffer.is_inference()
    assert metric.rows[0, Row.TOKENS] == 3 * 4 * 3


def test_the_widths_must_be_known() -> None:
    metric = ActivationStatisticsMetric(["one", "two"])
    compiled = torch.compile(watched(metric, torch.zeros(()), every_second_token), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"channels of layer 'one' is not known.*make_room"):
        compiled(next(batches((4, 6))))


# Dynamo looks at .grad of what it guards, and hides the warning only where warnings are no errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_registered_detector_is_compiled_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    readings = []
    for compiled in (False, True):
        model, detector = Stack(2), ActivationStatistics("layers.*")
        Layers(model).register_hook(None, detector)
        model(next(batches((4, 5))))
        call: Any = torch.compile(model, backend=counter, fullgraph=True) if compiled else model
        for x in batches((4, 5), (4, 5), (4, 5)):
            call(x).nan_to_num().sum().backward()
        readings.append(detector.readings())
    assert counter.frame_count == 1
    for found, expected in zip(*reversed(readings), strict=True):
        assert (found.layer, found.name) == (expected.layer, expected.name)
        if found.kind == "histogram":
            assert found.value.counts == expected.value.counts
        else:
            assert found.value == pytest.approx(expected.value, rel=1e-5)
