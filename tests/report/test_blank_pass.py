"""The trial pass without numbers: it shows the shapes of a real pass, and leaves nothing behind."""

from __future__ import annotations

import copy
import functools
import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
import transformers
from torch import Tensor, nn

from mi_crow_lightning.report.blank_pass import Seen, blank_pass
from mi_crow_lightning.report.output_shapes import Call
from mi_crow_lightning.report.tiny_calls import tiny_calls
from tests.addressing.test_widths import MODELS
from tests.models import assert_same_handles, handles, mlp

X = torch.zeros(3, 8)


def seen_by_plain_hooks(model: nn.Module, call: Call) -> dict[str, list[tuple[int, ...]]]:
    """The output shapes of a real pass, by a plain torch hook on each module that returns a tensor."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: (
            shapes.setdefault(name, []).append(tuple(output.shape)) if isinstance(output, Tensor) else None
        )

    kept = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        call.module(*call.args, **call.kwargs)
    for handle in kept:
        handle.remove()
    return shapes


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 asks for numbers")
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "mixtral"])
def test_the_shapes_are_those_of_a_real_pass(kind: str) -> None:
    model = MODELS[kind][0]()
    if kind == "mlp":
        model.example_input_array = X
    real = seen_by_plain_hooks(model.eval(), *tiny_calls(model))
    assert len(real) >= 4
    names = {module: name for name, module in model.named_modules()}
    found = {names[layer]: seen.made for layer, seen in blank_pass(tiny_calls(model.train()), list(names)).items()}
    assert {name: found.get(name) for name in real} == real


class WiderInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], -1) if self.training else x


def test_the_pass_is_one_of_evaluation() -> None:
    model = nn.Sequential(nn.Linear(8, 4), WiderInTraining()).train()
    assert blank_pass([Call(model, (X,))], [model[1]])[model[1]].made == [(3, 4)]
    assert model[1].training


def test_inputs_are_seen_too() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    assert blank_pass([Call(model, (X,))], [model[1]]) == {model[1]: Seen([(3, 4)], [(3, 2)])}


def test_layers_before_the_one_that_needs_numbers_are_seen() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0] if x.sum() > 0 else x

    model = nn.Sequential(nn.Linear(8, 4), Chooses(), nn.Linear(4, 2))
    found = blank_pass([Call(model, (X,))], list(model))
    assert {layer: seen.made for layer, seen in found.items()} == {model[0]: [(3, 4)]}


@functools.lru_cache
def cached_mask(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens).tril()


CALLS: list[int] = []


class Busy(nn.Module):
    """Writes to all that a forward may write to, and draws from each random state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm, self.metric = mlp(), nn.BatchNorm1d(5), torchmetrics.SumMetric()
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.outputs, self.by_name, self.last = 0, [], {}, None
        self.queue: deque[Tensor] = deque(maxlen=2)
        self.hidden = [nn.Linear(5, 5)]
        self.bound = self.note

    def note(self, x: Tensor) -> Tensor:
        self.last = x
        self.outputs.append(x)
        self.queue.append(x)
        self.by_name["x"] = x
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        random.random(), np.random.rand(), torch.rand(3)
        x = self.norm(nn.functional.dropout(self.layers(x), 0.5, training=self.training))
        x = self.hidden[0](self.bound(x)) + torch.rand_like(x)
        cached_mask(3)
        self.hidden[0].calls = self.calls
        return x


def state_of(module: nn.Module) -> list[Any]:
    """Everything in the modules, with tensors by value and identity."""
    states: list[Any] = []
    for part in (*module.modules(), *getattr(module, "hidden", ())):
        for name, value in sorted(vars(part).items()):
            states.append((name, value, copy.copy(value) if isinstance(value, (list, dict, deque, set)) else None))
    tensors = [*module.parameters(), *module.buffers()]
    return [states, [(id(tensor), tensor.clone(), tensor.requires_grad) for tensor in tensors]]


def test_nothing_is_left_behind() -> None:
    model = Busy().train()
    before, attached = state_of(model), handles(model)
    torch.manual_seed(5)
    drawn = torch.rand(2)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    wanted = random.Random(5).random(), np.random.RandomState(5).rand()
    found = blank_pass([Call(model, (X,))], list(model.modules()))
    assert found[model].made == [(3, 5)] and found[model.norm].made == [(3, 5)]
    assert (random.random(), np.random.rand()) == wanted and torch.equal(torch.rand(2), drawn)
    (states, tensors), (then, tensors_then) = state_of(model), before
    assert len(states) == len(then)
    for (name, value, items), (name_then, value_then, items_then) in zip(states, then, strict=True):
        assert name == name_then and value is value_then, name
        assert items == items_then or name in ("_parameters", "_buffers")
    for (identity, value, grad), (identity_then, value_then, grad_then) in zip(tensors, tensors_then, strict=True):
        assert identity == identity_then and torch.equal(value, value_then) and grad == grad_then
    assert_same_handles(attached, model)
    mask = cached_mask(3)
    assert mask.device.type == "cpu" and type(mask) is Tensor and mask.sum() == 6


def test_hooks_of_others_are_not_called() -> None:
    model, called = mlp(), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: called.append(1))
        module.register_forward_pre_hook(lambda *_: called.append(2))
    assert len(blank_pass([Call(model, (X,))], list(model))) == 6
    assert called == []


class Measured(nn.Module):
    """A model with a metric that forward updates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.metric, self.last = nn.Linear(8, 4), torchmetrics.MeanMetric(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.metric(x)
        return self.last(x)  # type: ignore[no-any-return]


def test_a_method_that_was_replaced_ends_the_pass() -> None:
    """It may be bound to the module itself, as those of a metric are."""
    model = Measured()
    found = blank_pass([Call(model, (X,))], [model.first, model.last])
    assert list(found) == [model.first] and model.metric.update_count == 0
    called: list[int] = []
    replaced = mlp()
    replaced[3].forward = lambda x: called.append(1) or x  # type: ignore[method-assign, func-returns-value]
    assert list(blank_pass([Call(replaced, (X,))], list(replaced))) == list(replaced)[:3] and called == []


def test_weights_that_are_not_plain_tensors_end_the_pass() -> None:
    class Quantised(nn.Parameter):
        pass

    model = mlp()
    model[3].weight = Quantised(model[3].weight.data)
    assert list(blank_pass([Call(model, (X,))], list(model))) == list(model)[:3]
    lazy = nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(3))
    assert list(blank_pass([Call(lazy, (X,))], list(lazy))) == [lazy[0]]


def test_a_scripted_layer_ends_the_pass() -> None:
    model = nn.Sequential(nn.Linear(8, 4), torch.jit.script(nn.Linear(4, 4)))
    assert list(blank_pass([Call(model, (X,))], list(model))) == [model[0]]


def test_nothing_is_compiled() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model = nn.Sequential(nn.Linear(8, 4), torch.compile(nn.Linear(4, 4), backend=backend), nn.Linear(4, 2))
    model[2].compile(backend=backend)
    found = blank_pass([Call(model, (X,))], list(model))
    assert [found[layer].made for layer in model] == [[(3, 4)], [(3, 4)], [(3, 2)]] and compiled == []


def test_a_shared_layer_has_one_stand_in() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert blank_pass([Call(model, (X,))], [shared])[shared].made == [(3, 8), (3, 8)]
