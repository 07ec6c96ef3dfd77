"""`ProjectionDetector`: the running pass as a condition for edits."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mi_crow_lightning import HookCallback
from mi_crow_lightning.errors import ConditionMismatch, HookError
from mi_crow_lightning.hooks import FunctionController, Layers, ProjectionDetector, SteeringController
from tests.callback.runs import data_of, module_of
from tests.callback.runs import run as run_stage
from tests.hooks.controllers.cases import BATCH, REAL, original, run
from tests.hooks.detectors.projections import U, V, assert_read, conditional, numpys, registered, touched
from tests.models import WIDTH, Module, llama, mlp, trainer


@pytest.mark.parametrize(
    ("at", "options", "layer"),
    [(1, {}, None), (1, {}, 1), (2, {"before_edits": True}, None), ("block:0-2", {}, "layers.1")],
)
@pytest.mark.parametrize("of", ["projection", "cosine"])
def test_edits_happen_where_a_layer_lies_beyond_the_bound(at: Any, options: Any, layer: Any, of: Any) -> None:
    looked_at = 2 if at == 2 else 1
    for side in ("above", "below"):
        detector = ProjectionDetector(at, V[0], **options)
        bound = -0.003 if of == "projection" else 0.02
        seen = conditional(detector, getattr(detector, side)(bound, of=of, layer=layer))
        x = seen.made[looked_at].double().numpy()
        values = x @ U[0] / (1 if of == "projection" else np.linalg.norm(x, axis=-1) + ~REAL.numpy())
        beyond = values > bound if side == "above" else values < bound
        assert torch.equal(touched(seen, 2), REAL & torch.from_numpy(beyond))
        assert touched(seen, 2).any() and not touched(seen, 2)[REAL].all()


class Products(TorchDispatchMode):
    """Counts the matrix products of whatever runs."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "mv", "addmv", "dot", "linear")
        return function(*args, **(kwargs or {}))


def test_one_matrix_product_for_each_layer_and_pass() -> None:
    """Whatever the number of directions and conditions."""
    counts = []
    for watched in (False, True):
        model, detector = llama().eval(), ProjectionDetector("block:0-2", vectors={"a": V[0], "b": V[1], "c": V[2]})
        steers = [SteeringController(3, V[0], when=detector.above(0.0, vector=name, layer=1)) for name in "abc"]
        if watched:
            registered(detector, *steers, model=model)
        with torch.no_grad(), Products() as products:
            model(**BATCH)
        counts.append(products.count)
    assert counts[1] == counts[0] + 3 > 3


def test_one_direction_of_several() -> None:
    detector = ProjectionDetector(1, vectors={"a": V[0], "b": V[1]})
    seen = conditional(detector, detector.above(0.0, vector="b"))
    assert torch.equal(touched(seen, 2), REAL & torch.from_numpy(seen.made[1].double().numpy() @ U[1] > 0))
    for wrong in (None, "c"):
        with pytest.raises(ValueError, match=f"vector={wrong!r} is not known"):
            detector.above(0.0, vector=wrong)


def test_a_function_may_ask_for_the_projections() -> None:
    detector = ProjectionDetector(1, V[0])
    seen = conditional(detector, lambda x, ctx: detector.running(ctx).amax(1) > 0.03)
    rows = torch.from_numpy(seen.made[1].double().numpy() @ U[0]).amax(1) > 0.03
    assert rows.any() and torch.equal(touched(seen, 2), REAL & rows[:, None])


def test_each_pass_of_a_generate_has_its_own() -> None:
    model, made, passed_on, looked_at = llama().eval(), [], [], []
    blocks = model.model.layers
    blocks[0].register_forward_hook(lambda module, args, output: looked_at.append(output.clone()))
    blocks[2].register_forward_hook(lambda module, args, output: made.append(output.clone()))
    detector = ProjectionDetector(0, V[0])
    registered(detector, SteeringController(2, torch.ones(WIDTH), when=detector.above(0.0)), model=model)
    blocks[2].register_forward_hook(lambda module, args, output: passed_on.append(output.clone()))
    for options in ({}, {"num_beams": 2}):
        model.generate(**BATCH, max_new_tokens=4, do_sample=False, **options)
    assert len(made) == 8
    for x, one, other in zip(looked_at, made, passed_on, strict=True):
        real = REAL.repeat_interleave(len(x) // 3, 0) if x.shape[1] == 7 else torch.ones(len(x), 1, dtype=torch.bool)
        assert torch.equal((one != other).any(-1), real & (x @ (V[0] / V[0].norm()) > 0))


TOO_LATE = (
    r"has not seen 'model.layers.\d' in this pass when 'model.layers.2' is edited: it must be on in this stage, at an"
)


@pytest.mark.parametrize(("at", "layer"), [(3, None), (2, None), ("block:1-3", "layers.3")])
def test_a_later_layer_is_no_condition(at: Any, layer: Any) -> None:
    """Nor in a second pass, where the value would be that of the first."""
    detector = ProjectionDetector(at, V[0], on_error="warn")
    steer = SteeringController(2, torch.ones(WIDTH), when=detector.above(0.0, layer=layer))
    model, _ = registered(detector, steer)
    for _ in range(3):
        with original(ConditionMismatch, TOO_LATE):
            model(**BATCH)


@pytest.mark.parametrize("comes", ["registered", "enabled"])
def test_a_value_from_before_the_controller_came_is_no_condition(comes: str) -> None:
    detector = ProjectionDetector(3, V[0])
    steer = SteeringController(2, torch.ones(WIDTH), when=detector.above(0.0))
    steer.disable()
    model, layers = registered(detector, *([steer] if comes == "enabled" else []))
    model(**BATCH)
    steer.enable()
    if comes == "registered":
        layers.register_hook(None, steer)
    with original(ConditionMismatch, TOO_LATE):
        model(**BATCH)


def test_after_the_order_is_mended_it_works() -> None:
    detector = ProjectionDetector(2, V[0])
    steer = SteeringController(2, torch.ones(WIDTH), when=detector.above(0.0))
    model, layers = registered(detector, steer)
    with original(ConditionMismatch, TOO_LATE):
        model(**BATCH)
    layers.unregister_all_hooks()
    detector.before_edits = True
    registered(detector, steer, model=model)
    model(**BATCH)


def test_a_value_of_an_earlier_batch_is_no_condition() -> None:
    """Where a batch leaves out the detector's layer."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(8, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.before(x) if x[0, 0] < 5 else x.repeat(1, 4))

    rows = [(torch.full((8,), float(i)), torch.tensor(0)) for i in (0, 0, 0, 0, 1, 1, 1, 1, 7, 7, 7, 7)]
    detector = ProjectionDetector("before", V[0])
    steer = SteeringController("after", V[1], when=detector.above(0.0))
    with pytest.raises(HookError, match=r"stage predict, batch 2.* has not seen 'model.before' in this pass"):
        run_stage("predict", trainer(HookCallback(detector, steer)), Module(Skipping()), rows)


def test_a_detector_that_is_off_or_failed_is_no_condition() -> None:
    class Fails(ProjectionDetector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            super().observe(x, ctx)
            raise ValueError("broke")

    detector, failing = ProjectionDetector(1, V[0]), Fails(1, V[0], on_error="warn")
    with original(ConditionMismatch, r"ProjectionDetector.* is on no model, .* HookCallback\(detectors=\[\.\.\.\]\)"):
        run(llama().eval(), "model.layers", BATCH, SteeringController(2, V[0], when=detector.above(0.0)))
    model, _ = registered(detector, SteeringController(2, torch.ones(WIDTH), when=detector.above(0.0)))
    model(**BATCH)
    detector.disable()
    with original(ConditionMismatch, "ProjectionDetector.* is off, so it does not see this pass: give it schedule="):
        model(**BATCH)
    model, _ = registered(failing, SteeringController(2, torch.ones(WIDTH), when=failing.above(0.0)))
    with pytest.warns(RuntimeWarning, match="broke"), original(ConditionMismatch, "failed in this pass"):
        model(**BATCH)


def test_without_a_trainer_both_must_be_in_one_registry() -> None:
    detector = ProjectionDetector(1, V[0])
    model, _ = registered(detector)
    Layers(model).register_hook(2, SteeringController(None, V[1], when=detector.above(0.0)))
    with original(ConditionMismatch, "is registered elsewhere: register it and the controller with one Layers"):
        model(**BATCH)


def test_two_callbacks_of_one_trainer_may_share_a_condition() -> None:
    detector = ProjectionDetector("block:1", V[0])
    steer = SteeringController("block:2", torch.ones(WIDTH), when=detector.above(0.0))
    callbacks = [HookCallback(controllers=steer), HookCallback(detectors=detector)]
    apart = run_stage("predict", trainer(*callbacks), module_of("llama"), data_of("llama"))
    together = run_stage("predict", trainer(HookCallback(detector, steer)), module_of("llama"), data_of("llama"))
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_which_of_several_layers_must_be_said() -> None:
    detector = ProjectionDetector("block:0-1", V[0])
    for layer, count in ((None, 2), (3, 0), ("layers.9", 0)):
        steer = SteeringController(2, torch.ones(WIDTH), when=detector.above(0.0, layer=layer))
        model, layers = registered(detector, steer)
        with original(
            ConditionMismatch,
            rf"layer={layer!r}, asked for at 'model.layers.2', means {count} of its layers: choose one of 'model",
        ):
            model(**BATCH)
        layers.unregister_all_hooks()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bound": "a"}, "bound='a' must be a finite number"),
        ({"bound": float("nan")}, "bound=nan must be a finite number"),
        ({"bound": 1, "of": "angle"}, "of='angle' is not known"),
    ],
)
def test_wrong_bounds(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectionDetector(1, V[0]).above(**given)


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_callback_travels_with_its_condition(travel: Any) -> None:
    detector = ProjectionDetector("block:1", V[0], hook_id="d")
    steer = SteeringController("block:2", torch.ones(WIDTH), when=detector.above(0.0), hook_id="s")
    callback = HookCallback(detectors=detector, controllers=steer)
    run_stage("predict", trainer(callback), module_of("llama"), data_of("llama")[:4])
    twin = travel(callback)
    assert twin.controllers[0].condition.detector is twin.detectors[0] is not detector
    one = run_stage("predict", trainer(callback), module_of("llama"), data_of("llama"))
    other = run_stage("predict", trainer(twin), module_of("llama"), data_of("llama"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert repr(twin.controllers[0].condition) == f"{detector!r}.above(0.0, of='projection')"


def test_no_sequence_no_problem() -> None:
    model, x = mlp().eval(), torch.randn(6, 8)
    detector = ProjectionDetector("0", V[0])
    made: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: made.append(output.detach()))
    registered(detector, FunctionController("3", torch.zeros_like, when=detector.above(0.0)), model=model)
    edited: list[Tensor] = []
    model[3].register_forward_hook(lambda module, args, output: edited.append(output.detach()))
    model(x)
    assert torch.equal((edited[0] == 0).all(1), made[0] @ (V[0] / V[0].norm()) > 0)
    assert_read(detector.readings(), {("0", name): v for name, v in numpys(made[0].double().numpy(), U[0]).items()})
