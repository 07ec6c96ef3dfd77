"""`SummingDetector` in graphs of `torch.compile`: the numbers of the uncompiled run, in graphs of one piece."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from mi_crow_lightning import HookCallback, Schedule, SummingDetector
from tests.callback.runs import run, told
from tests.hooks.summing import PositiveShare, Spread, Traced, assert_numpys, numpys, values_of
from tests.models import (
    CLASSES,
    WIDTH,
    Module,
    cnn,
    handles,
    image_data,
    llama,
    loader,
    token_data,
    trainer,
    vector_data,
)

# Of what dynamo does, see tests/callback/test_compiled.py.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

EVERY = Schedule()
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
NEEDS = pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler")


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Silent(Module):
    """Does not log: Lightning's ``self.log`` cannot be traced."""

    def log(self, *args: Any, **options: Any) -> None:
        pass


def compiled_fit(
    detector: SummingDetector | None, backend: Any, stage: str = "fit", of_tokens: bool = True
) -> HookCallback:
    """A fit with validation; the whole step is compiled, or nothing without a backend.

    Of a language model in batches of 4, 4, 4, 2; or of two linear layers in batches of 4.
    """
    module = Silent(llama(num_hidden_layers=2, attention_dropout=0.0) if of_tokens else two_layers())
    data = token_data(14) if of_tokens else vector_data(8)
    watch = HookCallback([detector] if detector is not None else [], log_every_n_steps=2)
    compiled: Any = torch.compile(module, backend=backend, dynamic=False) if backend is not None else module
    run(stage, trainer(watch, num_sanity_val_steps=0), compiled, data)
    assert not handles(module)
    return watch


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


@cache
def bare_graphs(of_tokens: bool) -> int:
    """How many graphs the run has without a detector."""
    torch._dynamo.reset()
    counted = CompileCounterWithBackend("eager")
    compiled_fit(None, counted, of_tokens=of_tokens)
    torch._dynamo.reset()
    counters.clear()
    return counted.frame_count


# Inductor compiles a language model to forty files of C++, which takes a minute.
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("kind", "layers", "backend"),
    [
        (PositiveShare, "block:*", "eager"),
        (Traced, "block:*", "aot_eager"),
        pytest.param(Spread, "type:Linear", "inductor", marks=NEEDS),
    ],
)
def test_a_compiled_step_has_the_numbers_in_graphs_of_one_piece(
    kind: type[SummingDetector], layers: str, backend: str
) -> None:
    of_tokens = layers == "block:*"
    bare, counted = bare_graphs(of_tokens), CompileCounterWithBackend(backend)
    found, expected = (compiled_fit(kind(layers, schedule=EVERY), how, of_tokens=of_tokens) for how in (counted, None))
    rows = [[row._replace(value=0.0) for row in watch.history()] for watch in (found, expected)]
    assert rows[0] == rows[1] != []
    values = [[row.value for row in watch.history()] for watch in (found, expected)]
    # The layers' own outputs differ by rounding, where the backend is not eager.
    assert values[0] == (values[1] if backend == "eager" else pytest.approx(values[1], rel=1e-3, abs=2e-3))
    assert sum(counters["graph_break"].values()) == 0
    assert counted.frame_count == bare  # on all the time: not one graph more


@pytest.mark.usefixtures("fresh")
def test_in_a_graph_padding_counts_not() -> None:
    module = Silent(llama(num_hidden_layers=2))
    outputs, seen = [], [batch["attention_mask"].numpy().astype(bool) for batch in loader(token_data(10))]
    handle = module.model.model.layers[1].register_forward_hook(  # type: ignore[index,union-attr]
        lambda layer, args, output: outputs.append(output.detach().double().numpy())
    )
    run("validate", trainer(), module, token_data(10))
    handle.remove()
    watch = HookCallback(Spread("block:1"))
    run("validate", trainer(watch), torch.compile(module, backend="eager"), token_data(10))  # type: ignore[arg-type]
    tokens = np.concatenate([x[mask] for x, mask in zip(outputs, seen, strict=True)])
    assert_numpys(values_of(watch, "validate"), {"model.model.layers.1": numpys(tokens)})


class Broken(PositiveShare):
    def measure(self, x, mask, ctx):
        if ctx.batch_idx == 1:
            raise ValueError(f"broke at {ctx.layer}, block {ctx.index}, in {ctx.stage.value}")
        return super().measure(x, mask, ctx)


@pytest.mark.usefixtures("fresh")
def test_an_error_in_a_graph_is_dealt_with_as_on_error_says() -> None:
    with told("ValueError: broke at model.model.layers.1, block 1, in validate", RuntimeWarning) as texts:
        watch = compiled_fit(Broken("block:1"), "eager", "validate")
    assert len(texts) == 1 and watch.history() == [] and not watch.detectors[0].enabled


class FirstChannel(PositiveShare):
    """Measures the first channel alone, wherever the layer has its channels."""

    def measure(self, x, mask, ctx):
        first = x.select(ctx.channel_dim(x), 0)
        return (first > 0).sum(), first.numel()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("options", [{}, {"channels": -1}])
def test_in_a_graph_the_channels_are_where_the_layer_has_them(options: dict[str, int]) -> None:
    module, outputs = Silent(cnn()), []
    handle = module.model[3].register_forward_hook(lambda layer, args, y: outputs.append(y.numpy()))
    run("validate", trainer(), module, image_data(8))
    handle.remove()
    y = np.concatenate(outputs)  # (B, C, H, W)
    first = y[..., 0] if options else y[:, 0]
    watch = HookCallback(FirstChannel("model.3", **options))
    run("validate", trainer(watch), torch.compile(module, backend="eager"), image_data(8))  # type: ignore[arg-type]
    assert [row.value for row in watch.history()] == [pytest.approx((first > 0).mean())]


class Nosy(PositiveShare):
    def measure(self, x, mask, ctx):
        return super().measure(x + len(ctx.args), mask, ctx)


@pytest.mark.usefixtures("fresh")
def test_what_an_operation_does_not_know_is_said() -> None:
    with told(r"ctx\.args is not known to `measure` in a graph of torch\.compile\. Say traceable", RuntimeWarning):
        compiled_fit(Nosy("block:1"), "eager", "validate")


@pytest.mark.usefixtures("fresh")
def test_one_that_cannot_be_traced_is_called() -> None:
    class Does(PositiveShare):
        def observe(self, x, ctx):
            super().observe(x, ctx)

    found, expected = (compiled_fit(kind("block:1"), "eager", "validate") for kind in (Does, PositiveShare))
    assert [row.value for row in found.history()] == [row.value for row in expected.history()] != []
