"""What hooks may do inside of a compiled graph, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    AblationController,
    ClampController,
    Detector,
    HookCallback,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks.hook import Hook
from tests.callback.compiled.cases import (
    QUIET,
    Counted,
    as_it_is,
    assert_same_numbers,
    in_place,
    small_llama,
    small_mlp,
    wrapped,
)
from tests.callback.runs import run
from tests.models import WIDTH, token_data, trainer, vector_data

pytestmark = QUIET


@pytest.mark.documents("compatibility/the-lightningmodule-or-a-model-in-it-wrapped-or-in-place/controllers")
@pytest.mark.parametrize(
    "make",
    [
        lambda: SteeringController("model.0", torch.arange(WIDTH) / WIDTH, -2.0, preserve_norm=True),
        lambda: SteeringController("model.*", {"model.0": torch.ones(WIDTH), "model.3": torch.ones(WIDTH)}),
        lambda: SteeringController("model.3", torch.ones(WIDTH), torch.tensor([0.0, 1.0, 2.0, 3.0])),
        lambda: SteeringController("model.3", torch.ones(WIDTH), hook_type="pre_forward"),
        lambda: AblationController("model.3", torch.eye(WIDTH)[:3], strength=0.5),
        lambda: ClampController("model.3", torch.ones(WIDTH), high=0.1),
        lambda: ClampController("model.3", torch.ones(WIDTH), value=1.0),
        lambda: ScaleController("model.0", 0.5),
    ],
)
def test_controllers_edit_as_they_do_without_compiling(make: Callable[[], Any]) -> None:
    outputs, effects, counted = [], [], Counted()
    for way in (as_it_is, in_place):
        controller = make()
        if controller.layer_signature == "model.*":
            controller.layer_signature = "model.0"
        watch = HookCallback(controllers=controller)
        outputs.append(torch.cat(run("predict", trainer(watch), way(small_mlp(), counted.backend), vector_data(8))))
        effects.append(watch.effects())
    torch.testing.assert_close(outputs[1], outputs[0])
    assert [effect[:5] for effect in effects[0]] == [effect[:5] for effect in effects[1]] and effects[0][0].fired > 0
    assert (counted.graphs, counted.breaks) == (1, 0)


def test_projections_are_those_without_compiling() -> None:
    callbacks = []
    for way in (as_it_is, in_place):
        detector = ProjectionDetector("block:*", vectors={"a": torch.ones(WIDTH), "b": torch.arange(WIDTH) - 8.0})
        callbacks.append(HookCallback(detector, log_every_n_steps=1))
        run("fit", trainer(callbacks[-1]), way(small_llama(), "eager"), token_data(8))
    assert_same_numbers(*callbacks)


class RowSums(Detector):
    """An own detector that can be traced: its state is a tensor."""

    traceable = True

    def __init__(self, layer_signature: str) -> None:
        super().__init__(layer_signature, schedule=Schedule())
        self.sums = torch.zeros(10)

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.sums.index_add_(0, ctx.batch_idx[None], x.sum()[None])


def test_an_own_detector_that_says_so_is_traced() -> None:
    counted, detector, outputs = Counted(), RowSums("model.3"), []
    module = small_mlp()
    module.model[3].register_forward_hook(lambda layer, args, output: outputs.append(output.sum()))  # type: ignore
    run("predict", trainer(), module, vector_data())
    run("predict", trainer(HookCallback(detector)), in_place(small_mlp(), counted.backend), vector_data())
    torch.testing.assert_close(detector.sums[:5], torch.stack(outputs))
    assert (counted.graphs, counted.breaks) == (1, 0)


class Own(Hook):
    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> None:
        pass


REFUSED = "would run inside a graph of torch.compile: 'model.3' lies in 'model', which is compiled. There, "
NOT_KNOWN = "{} is not known to be traceable"


class Direct(Detector):
    def process_activations(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> None:
        pass


@pytest.mark.documents(
    "compatibility/hooks-that-cannot-be-traced/detectors", "compatibility/hooks-that-cannot-be-traced/controllers"
)
@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (Own("model.3"), NOT_KNOWN.format("Own") + ".*, and Own is neither a Detector nor a Controller"),
        (Direct("model.3"), NOT_KNOWN.format("Direct") + ".*, and Direct overrides process_activations"),
    ],
)
def test_what_can_neither_be_traced_nor_called_is_refused(hook: Hook, reason: str) -> None:
    hooks = {"controllers" if hook.edits else "detectors": hook}
    with pytest.raises(RegistrationError, match=REFUSED + reason):
        run("predict", trainer(HookCallback(**hooks)), wrapped(small_mlp(), "eager"), vector_data())  # type: ignore
    assert not hook.registered
