"""Hooks that a compiled graph calls as the Python that they are: as without compiling, in one graph, once a pass."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    Controller,
    Detector,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Layers, Tokens
from mi_crow_lightning.hooks.compiled.graphs import graphs_of
from mi_crow_lightning.hooks.compiled.rules import choose_ways
from mi_crow_lightning.hooks.hook import Hook
from tests.callback.compiled.cases import (
    INDUCTOR,
    QUIET,
    Chain,
    Counted,
    as_it_is,
    in_place,
    small_llama,
    small_mlp,
)
from tests.callback.runs import fit, run
from tests.models import WIDTH, token_data, trainer, vector_data

pytestmark = QUIET

ALWAYS = Schedule()


class Halved(FunctionController):
    """Looks at values, as nothing that is traced can, and counts its calls."""

    def __init__(self, layer: str, **options: Any) -> None:
        self.calls = 0
        super().__init__(layer, self._half, schedule=ALWAYS, **options)

    def _half(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 0.5 * torch.tanh(x) if x.abs().max().item() > 0 else x


def fitted(how: Any, hooks: list[Hook], backend: str = "eager") -> tuple[Any, Counted, Tensor]:
    torch._dynamo.reset()
    counted, module = Counted(backend), small_mlp()
    watch = HookCallback([hook for hook in hooks if not hook.edits], [hook for hook in hooks if hook.edits])
    fit(how(module, counted.backend), vector_data(8), watch)
    return watch, counted, torch.cat([weight.detach().flatten() for weight in module.parameters()])


@cache
def bare_graphs() -> int:
    """How many graphs the fit has without a hook, whatever the backend."""
    return fitted(in_place, [])[1].graphs


@pytest.mark.documents("compatibility/hooks-that-cannot-be-traced/controllers")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", INDUCTOR])
def test_a_function_trains_as_without_compiling_and_is_called_once_a_pass(backend: str) -> None:
    hooks = [Halved("model.0"), Halved("model.0")]
    expected, _, weights = fitted(as_it_is, [hooks[0]])
    found, counted, compiled = fitted(in_place, [hooks[1]], backend)
    torch.testing.assert_close(compiled, weights, rtol=1e-5, atol=1e-6)
    assert hooks[0].calls == hooks[1].calls > 0
    assert [effect[:5] for effect in found.effects()] == [effect[:5] for effect in expected.effects()] != []
    assert counted.breaks == 0
    assert counted.graphs <= bare_graphs() + 1


def test_ten_schedules_are_one_graph() -> None:
    def hooks() -> list[Hook]:
        names = ["model.0", "model.3"] * 5
        return [
            ScaleController(name, 1.1 + n / 10, hook_id=f"n{n}", schedule=Schedule("predict", every_n_batches=n + 1))
            for n, name in enumerate(names)
        ]

    outputs, fired, counted = [], [], Counted()
    for how in (as_it_is, in_place):
        watch = HookCallback(controllers=hooks())
        outputs.append(torch.cat(run("predict", trainer(watch), how(small_mlp(), counted.backend), vector_data(48))))
        fired.append({effect.hook: effect.fired for effect in watch.effects()})
    torch.testing.assert_close(*outputs)
    assert fired[0] == fired[1] and len(fired[0]) == 10
    assert (counted.graphs, counted.breaks) == (1, 0)


class RowCount(Detector):
    """Keeps numbers in Python, which a graph would compile in."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer, schedule=ALWAYS)
        self.batches: list[tuple[int | None, float]] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.batches.append((ctx.batch_idx, x.sum().item()))


class Mirrored(Controller):
    """Edits where the values say."""

    def edit(self, x: Tensor, ctx: Any) -> Tensor | None:
        return -x if x.sum().item() > 0 else None


@pytest.mark.documents("compatibility/hooks-that-cannot-be-traced/detectors")
def test_own_hooks_conditions_and_functions_are_called() -> None:
    seen, outputs, counted = [], [], Counted()
    for how in (as_it_is, in_place):
        count, capture = RowCount("model.3"), LayerActivationDetector("model.0", schedule=ALWAYS)
        project = ProjectionDetector("model.0", torch.ones(WIDTH), schedule=ALWAYS)
        above = ScaleController("model.3", 3.0, when=project.above(0.1))
        by_index = ScaleController("model.3", 2.0, strength=lambda ctx: float(ctx.batch_idx))
        before = FunctionController("model.3", torch.sin, hook_type="pre_forward")
        watch = HookCallback([count, capture, project], [above, by_index, Mirrored("model.0"), before])
        outputs.append(torch.cat(run("predict", trainer(watch), how(small_mlp(), counted.backend), vector_data(20))))
        seen.append((count.batches, capture.tensor_metadata["activations"], watch.effects()))
    torch.testing.assert_close(*outputs)
    (one, captured, effects), (other, captured_too, effects_too) = seen
    assert [index for index, _ in one] == [index for index, _ in other] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(captured, captured_too)
    assert [effect[:5] for effect in effects] == [effect[:5] for effect in effects_too]
    assert (counted.graphs, counted.breaks) == (1, 0)


@pytest.mark.parametrize("tokens", ["generated", Tokens(positions=[-1])])
def test_tokens_by_the_end_of_the_prompt_while_generating(tokens: Any) -> None:
    outputs, effects = [], []
    for how in (as_it_is, in_place):
        torch._dynamo.reset()
        steer = SteeringController("block:1", torch.arange(WIDTH) / 8, 1.0, tokens=tokens)
        watch, module = HookCallback(controllers=steer), small_llama()
        module.model.eval()
        outputs.append(run("predict", trainer(watch), how(module, "eager"), token_data(4)))
        effects.append([effect[:5] for effect in watch.effects()])
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    assert effects[0] == effects[1] != []


def test_the_gradient_of_an_edit_is_right() -> None:
    hook = FunctionController("0", lambda x: x.sin() * x.amax(-1, keepdim=True))
    model = Chain(nn.Linear(3, 3), nn.Tanh()).double()
    layers = Layers(model, graphs=graphs_of(model, whole=True))
    layers.register_hook("0", hook)
    choose_ways(layers, [])
    layers.hold_traced()
    layers.begin_batch(None)
    layers.set_due(hook, True)
    try:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        expected = torch.tanh((y := model[0].forward(x)).sin() * y.amax(-1, keepdim=True))
        torch.testing.assert_close(compiled(x), expected)
        torch.autograd.gradcheck(compiled, (x,))
    finally:
        layers.unregister_all_hooks()


def test_an_edit_that_learns_says_that_it_cannot() -> None:
    learned = torch.ones(WIDTH, requires_grad=True)
    with pytest.raises(HookError, match="the edit depends on a parameter"):
        fitted(in_place, [FunctionController("model.0", lambda x: x * learned, schedule=ALWAYS)])


class Nosy(Controller):
    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        return x + len(ctx.args)


def test_what_a_called_hook_cannot_know_is_said() -> None:
    watch = HookCallback(controllers=Nosy("model.0"))
    with pytest.raises(HookError, match=r"the layer's inputs \(ctx\.args, ctx\.kwargs\)"):
        run("predict", trainer(watch), in_place(small_mlp(), "eager"), vector_data(4))
