"""`ProjectionDetector`: readings in every stage, and the running pass as a condition for edits."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mi_crow_lightning import HookCallback, Schedule
from mi_crow_lightning.errors import ConditionMismatch, HookError, RegistrationError, TagConflict, VectorMismatch
from mi_crow_lightning.hooks import FunctionController, Layers, ProjectionDetector, SteeringController
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, module_of
from tests.callback.runs import run as run_stage
from tests.hooks.controllers.cases import BATCH, REAL, original, run, vectors
from tests.hooks.test_token_controller import checkpoint_blocks
from tests.models import WIDTH, Module, llama, mlp, trainer

V = vectors(3)
U = V.double().numpy() / np.linalg.norm(V.double().numpy(), axis=1, keepdims=True)


def numpys(tokens: np.ndarray, unit: np.ndarray) -> dict[str, float]:
    along = tokens @ unit
    cosine = along / np.linalg.norm(tokens, axis=1)
    return dict(mean=along.mean(), std=along.std(), min=along.min(), max=along.max(), cosine=cosine.mean())


def assert_read(found: Any, expected: dict[tuple[str, str], float]) -> None:
    values = {(one.layer, one.name): one.value for one in found}
    assert values.keys() == expected.keys()
    assert values == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in expected.items()}


def registered(detector: ProjectionDetector, *others: Any, model: nn.Module | None = None) -> tuple[nn.Module, Layers]:
    model = model if model is not None else llama().eval()
    layers = Layers(model, allow_stacking=True)
    for hook in (detector, *others):
        layers.register_hook(None, hook)
    return model, layers


def test_each_layer_and_direction_against_numpy() -> None:
    bare = run(llama().eval(), "model.layers", BATCH).passed_on
    per_layer = {i: V[i % 3] for i in range(4)}
    detector = ProjectionDetector("block:1-2", vectors={"joy": V[0], "own": per_layer, "sad": 7 * V[2]})
    model, _ = registered(detector)
    for _ in range(2):  # twice the same tokens have the same mean
        model(**BATCH)
    expected = {}
    for i in (1, 2):
        tokens = bare[i][REAL].double().numpy()
        for name, unit in (("joy", U[0]), ("own", U[i]), ("sad", U[2])):
            expected |= {(f"model.layers.{i}", f"{name}_{k}"): v for k, v in numpys(tokens, unit).items()}
    assert_read(detector.readings(), expected)
    assert detector.vector_names == ("joy", "own", "sad")
    assert {name for _, name in expected} == set(detector.reading_names())
    detector.reset()
    assert list(detector.readings()) == []


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", "last"])
def test_tokens_in_generate(tokens: str) -> None:
    model, seen = llama().eval(), []
    model.generation_config.eos_token_id = None
    model.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    detector = ProjectionDetector("block:1", V[0], tokens=tokens)
    registered(detector, model=model)
    model.generate(**BATCH, max_new_tokens=4, do_sample=False)
    prompt, new = seen[0][REAL], torch.cat([one[:, 0] for one in seen[1:]])
    chosen = {
        "all": [prompt, new],
        "prompt": [prompt],
        "generated": [new],
        "last": [seen[0][:, -1], new],
    }[tokens]
    expected = numpys(torch.cat(chosen).double().numpy(), U[0])
    assert_read(detector.readings(), {("model.layers.1", name): value for name, value in expected.items()})


def test_it_changes_nothing_and_keeps_no_activation() -> None:
    def trained(*callbacks: Any) -> dict[str, Any]:
        module = module_of("llama")
        torch.manual_seed(3)
        return fingerprint(module, fit(module, data_of("llama"), *callbacks, accumulate_grad_batches=2))

    detector = ProjectionDetector("block:*", V[0], schedule=Schedule())
    assert_bit_equal(trained(), trained(HookCallback(detectors=detector)))
    assert all(
        one.numel() <= 4 * 7 for seen in detector._last._seen.values() for _, values in seen.passes for one in values
    )


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_readings_of_a_trainer_are_those_of_numpy(stage: str) -> None:
    module, data = module_of("llama"), data_of("llama")
    seen: list[Tensor] = []
    module.model.model.layers[2].register_forward_hook(lambda _, args, output: seen.append(output.detach().double()))
    watch = HookCallback(detectors=ProjectionDetector(2, V[1], name="persona"))
    runner = trainer(watch, accumulate_grad_batches=2, log_every_n_steps=2, limit_val_batches=2, num_sanity_val_steps=0)
    run_stage(stage, runner, module, data)
    masks = [torch.stack([row["attention_mask"] for row in data[i : i + 4]]).bool() for i in range(0, 20, 4)]
    chosen = {"fit": [2, 3], "validate": [0, 1], "test": range(5)}[stage]  # the second step's micro-batches
    tokens = torch.cat([seen[i][masks[i]] for i in chosen]).numpy()
    kind = {"fit": "train", "validate": "validate", "test": "test"}[stage]
    rows = [row for row in watch.history() if row.stage == kind]
    assert_read(rows, {("model.model.layers.2", name): value for name, value in numpys(tokens, U[1]).items()})
    segment = {"fit": "", "validate": "val/", "test": "test/"}[stage]
    assert rows[0].tag == f"persona_mean/{segment}model.model.layers.2"
    assert float(runner.callback_metrics[rows[0].tag]) == pytest.approx(rows[0].value)


def test_predict_is_read_too() -> None:
    watch = HookCallback(detectors=ProjectionDetector("block:*", V[0]))
    run_stage("predict", trainer(watch), module_of("llama"), data_of("llama"))
    rows = [row for row in watch.history() if row.name == "mean"]
    assert [row.tag for row in rows] == [f"projection_mean/predict/model.model.layers.{i}" for i in range(4)]


def test_two_on_one_layer_need_names() -> None:
    one, other = ProjectionDetector(1, V[0]), ProjectionDetector(1, V[1])
    with pytest.raises(TagConflict, match=r"would both write the mean of .* under 'projection'"):
        run_stage("validate", trainer(HookCallback([one, other])), module_of("llama"), data_of("llama"))


def test_state_goes_on_in_the_middle_of_a_reading() -> None:
    detector = ProjectionDetector("block:1", V[0], hook_id="p")
    model, _ = registered(detector)
    model(**BATCH)
    state = pickle.loads(pickle.dumps(detector.state_dict()))
    model(**{name: tensor.flip(0)[:2] for name, tensor in BATCH.items()})
    for early in (True, False):
        twin = ProjectionDetector("block:1", V[0])
        if early:
            twin.load_state_dict(state)
        other, _ = registered(twin)
        if not early:
            twin.load_state_dict(state)
        other(**{name: tensor.flip(0)[:2] for name, tensor in BATCH.items()})
        assert list(twin.readings()) == list(detector.readings())
    for wrong, message in (
        (ProjectionDetector("block:2", V[0]), r"are of the layers \['model.layers.1'\], and the detector has"),
        (
            ProjectionDetector("block:1", vectors={"a": V[0]}),
            r"are of the vectors \[''\], and the detector has \['a'\]",
        ),
    ):
        wrong.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            registered(wrong)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "give vector=, a direction, or vectors=, several of them by name; one of the two"),
        ({"vector": V[0], "vectors": {"a": V[0]}}, ValueError, "one of the two"),
        ({"vector": V}, ValueError, r"vector must be a float tensor \(D,\), not torch.float32 of shape \(3, 32\)"),
        ({"vectors": V}, TypeError, "must be a mapping from name to vector"),
        ({"vectors": {}}, TypeError, r"vectors=\{\} must be a mapping"),
        ({"vectors": {"a/b": V[0]}}, ValueError, "the name 'a/b' must be a non-empty string without '/'"),
        ({"vectors": {1: V[0]}}, ValueError, "the name 1 must be"),
        ({"vectors": {"a": torch.zeros(3)}}, ValueError, r"vectors\['a'\] has length 0"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ProjectionDetector(0, **given)


def test_what_does_not_fit_the_layers() -> None:
    with pytest.raises(RegistrationError, match=r"vectors\['a'\] has nothing for layer 'model.layers.2'"):
        registered(ProjectionDetector("block:2", vectors={"a": {1: V[0]}}))
    with pytest.raises(
        RegistrationError, match=r"for layer 'model.layers.2' the vectors have different widths, \[32, 7\]"
    ):
        registered(ProjectionDetector("block:2", vectors={"a": V[0], "b": torch.ones(7)}))
    model, _ = registered(ProjectionDetector("block:2", torch.ones(7)))
    with original(VectorMismatch, "the direction has 7 features, and the activation of 'model.layers.2' has 32"):
        model(**BATCH)


# As a condition.


def touched(seen: Any, block: int) -> Tensor:
    return (seen.passed_on[block] != seen.made[block]).any(-1)


def conditional(detector: ProjectionDetector, when: Any, at: int = 2) -> Any:
    """One pass of a model with the detector and an edit under the condition."""
    return run(llama().eval(), "model.layers", BATCH, detector, SteeringController(at, torch.ones(WIDTH), when=when))


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


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_a_recompute_is_edited_as_its_pass_was(reentrant: bool | None) -> None:
    def gradients(checkpointed: bool) -> list[Tensor]:
        module, data = module_of("llama"), data_of("llama")
        module.model.config.attention_dropout = 0.0
        for layer in module.model.model.layers:
            layer.self_attn.attention_dropout = 0.0
        if checkpointed:
            checkpoint_blocks(module.model, bool(reentrant))
        detector = ProjectionDetector("block:0", V[0], schedule=Schedule())
        when = detector.above(0.0)
        steer = SteeringController("block:1-2.mlp", 0.1 * V[1], when=when, schedule=Schedule())
        fit(module, data, HookCallback(detector, steer), max_steps=2)
        return [parameter.detach() for parameter in module.parameters()]

    pairs = zip(gradients(reentrant is not None), gradients(False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_several_passes_before_one_backward(reentrant: bool) -> None:
    """As in DPO: each recompute gets what was seen in its own pass, though the masks agree."""
    other = {**BATCH, "input_ids": BATCH["input_ids"].roll(1, 0)}

    def gradients(checkpointed: bool) -> list[Any]:
        model = llama(attention_dropout=0.0).train()
        if checkpointed:
            checkpoint_blocks(model, reentrant)
        detector = ProjectionDetector("block:0", V[0])
        steer = SteeringController("block:1-2.mlp", 0.1 * V[1], when=detector.above(0.0))
        registered(detector, steer, model=model)
        sum(model(**batch, labels=batch["input_ids"]).loss for batch in (BATCH, other)).backward()  # type: ignore
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(gradients(True), gradients(False), strict=True))


class Checkpointed(nn.Module):
    """Layers without a token module."""

    def __init__(self, checkpointed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(8, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        return checkpoint(self.after, before, use_reentrant=False) if self.checkpointed else self.after(before)  # type: ignore


def fit_several(passes: int, checkpointed: bool = True) -> list[Tensor]:
    """The weights after training with several passes before each backward pass, steered under a condition."""

    class Several(Module):
        def loss(self, batch: Any) -> Tensor:
            return sum(super(Several, self).loss((i + batch[0], batch[1])) for i in range(passes))  # type: ignore

    detector = ProjectionDetector("before", V[0], schedule=Schedule())
    steer = SteeringController("after.0", V[1], when=detector.above(0.0), schedule=Schedule())
    module = Several(Checkpointed(checkpointed))
    fit(module, data_of(), HookCallback(detector, steer))
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("passes", [1, 2])
def test_passes_without_a_token_module_are_recomputed_as_they_were(passes: int) -> None:
    pairs = zip(fit_several(passes), fit_several(passes, checkpointed=False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_where_passes_cannot_be_told_apart_a_recompute_is_refused() -> None:
    with pytest.raises(ConditionMismatch, match=r"runs 'model.after.0' again, and which of several passes that was"):
        fit_several(passes=34)


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
