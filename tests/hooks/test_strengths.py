"""Strengths: each form gives the bits of a run with that number, row by row; what does not fit is said."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_crow_lightning.errors import RegistrationError, StrengthMismatch
from mi_crow_lightning.hooks import (
    ClampController,
    FunctionController,
    LayerActivationDetector,
    Layers,
    ProjectionDetector,
    ScaleController,
    SteeringController,
)
from mi_crow_lightning.hooks.strengths import reads_batch
from tests.hooks.controllers.cases import BATCH, EDITS, VECTOR, original, run
from tests.models import WIDTH, llama

EACH = torch.tensor([0.0, 0.3, -2.0])


def edited(strength: Any, edit: str = "steer", dtype: torch.dtype = torch.float32) -> Tensor:
    controller = EDITS[edit][0](1)
    controller.strength = strength
    return run(llama().eval().to(dtype), "model.layers", BATCH, controller).passed_on[1]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_bits_of_a_run_with_its_number(edit: str, dtype: torch.dtype) -> None:
    together = edited(EACH, edit, dtype)
    for row, strength in enumerate(EACH.tolist()):
        assert torch.equal(together[row], edited(strength, edit, dtype)[row])
    whole = edited(torch.ones(3), edit, dtype)
    assert torch.equal(whole, edited(1, edit, dtype))


@pytest.mark.parametrize(
    "given", [EACH, EACH.double(), EACH.bfloat16().float(), torch.tensor([0, 1, -2]), lambda ctx: EACH]
)
def test_numbers_of_any_kind_for_samples(given: Any) -> None:
    as_floats = given(None) if callable(given) and not isinstance(given, Tensor) else given.float()
    assert torch.equal(edited(given), edited(as_floats))


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), np.int64(2)])
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    for given in (number, {1: number}, lambda ctx: number):
        assert torch.equal(edited(given), edited(2))
    clamp = ClampController(0, VECTOR, low=-number, high=number)
    bound = ProjectionDetector(0, VECTOR).above(number).bound
    numbers = (clamp.low, clamp.high, ScaleController(0, number).factor, bound)
    assert numbers == (-2, 2, 2, 2) and {type(one) for one in numbers} == {float}


@pytest.mark.parametrize("value", [EACH, EACH.tolist()[1], torch.tensor(0.3), 2])
def test_the_batch_may_hold_them(value: Any) -> None:
    """Also when it gets them while it runs, as a ``predict_step`` may do it."""
    model = llama().eval()
    layers, kept, batch = Layers(model), LayerActivationDetector("block:1"), dict(BATCH)
    layers.register_hook(None, SteeringController(1, VECTOR, "batch"))
    layers.register_hook(None, kept)
    layers.begin_batch(None, batch)
    batch["strength"] = value
    with torch.no_grad():
        model(**BATCH)
    same = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    assert torch.equal(kept.get_captured(), edited(same))


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        ({0: 5, 1: 0.3}, 0.3),
        ({"model.layers.1": 0.3, "model.layers.2": 7.0}, 0.3),
        ({"model.model.layers.1": 0.3}, 0.3),
        ({"layers.1": 0.3}, 0.3),
        (lambda ctx: 0.3 * ctx.index, 0.3),
        (lambda ctx: torch.tensor(0.3, requires_grad=True), 0.3),
    ],
)
def test_by_layer_and_by_function(strength: Any, expected: float) -> None:
    assert torch.equal(edited(strength).detach(), edited(expected))


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (
            torch.ones(2),
            r"strength has 2 values, one for each sample, and .* 'model.layers.1' has 3 rows \(shape \(3, 7, ",
        ),
        (lambda ctx: torch.ones(2), "the strength function's result has 2 values"),
        (lambda ctx: torch.ones(3, 1), r"the strength function's result has shape \(3, 1\): it must be a number or"),
        (lambda ctx: None, "the strength function's result is None: it must be a finite number or a tensor"),
        (lambda ctx: float("nan"), "the strength function's result is nan"),
        ("batch", "strength='batch' reads batch\\['strength'\\], and the batch is a NoneType: it must be a mapping"),
    ],
)
def test_strengths_that_do_not_fit_the_pass(strength: Any, message: str) -> None:
    with original(StrengthMismatch, message):
        edited(strength)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (dict(BATCH), r"has only: 'input_ids', 'attention_mask'. Put a tensor .*; CausalLMModule\(sweep="),
        ({"strength": torch.ones(4)}, r"batch\['strength'\] has 4 values, one for each sample, and .* has 3 rows"),
        ({"strength": [1, 2, 3]}, r"batch\['strength'\] is \[1, 2, 3\]: it must be a finite number or a tensor \(B,\)"),
        ([1, 2], "and the batch is a list: it must be a mapping"),
    ],
)
def test_batches_without_fitting_strengths(batch: Any, message: str) -> None:
    model, layers = llama().eval(), None
    layers = Layers(model)
    layers.register_hook(None, SteeringController(1, VECTOR, "batch"))
    layers.begin_batch(None, batch)
    with original(StrengthMismatch, message):
        model(**BATCH)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (
            "loud",
            "strength='loud' must be a finite number, a tensor .*, 'batch', a mapping from layer to num",
        ),
        (None, "strength=None must be a finite number"),
        (float("nan"), "strength=nan must be a finite number"),
        (True, "strength=True must be a finite number"),
        ([1.0, 2.0], r"strength=\[1.0, 2.0\] must be a finite number"),
        (torch.ones(2, 2), r"not a torch.float32 tensor of shape \(2, 2\)"),
        (torch.ones(0), r"not a torch.float32 tensor of shape \(0,\)"),
        (torch.tensor(1.0), r"not a torch.float32 tensor of shape \(\)"),
        (torch.ones(2, dtype=torch.bool), "not a torch.bool tensor"),
        (torch.tensor([1.0, float("inf")]), "strength holds 1 values that are not finite"),
        ({}, "strength is an empty mapping"),
        ({1: "a"}, r"strength\[1\]='a' must be a finite number$"),
    ],
)
def test_wrong_strengths(strength: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SteeringController(0, VECTOR, strength)
    controller = SteeringController(0, VECTOR, 2)
    with pytest.raises(ValueError, match=message):
        controller.strength = strength
    assert controller.strength == 2


def test_a_tensor_of_strengths_is_copied() -> None:
    given = EACH.clone().requires_grad_()
    controller = SteeringController(1, VECTOR, given)
    with torch.no_grad():
        given.zero_()
    seen = run(llama().eval(), "model.layers", BATCH, controller)
    assert torch.equal(seen.passed_on[1], edited(EACH))


def test_a_key_that_is_no_layer() -> None:
    with pytest.raises(
        TypeError, match=r"strength: the key 1.5 does not name a layer; give the index of a block, or a layer's name"
    ):
        SteeringController(0, VECTOR, {1.5: 2.0})


def test_a_layer_without_a_strength_is_refused_at_registration() -> None:
    layers = Layers(llama())
    with pytest.raises(
        RegistrationError, match=r"strength has nothing for layer 'model.layers.2' \(block 2\); it has: 1, 3"
    ):
        layers.register_hook("block:1-3", SteeringController(None, VECTOR, {1: 1.0, 3: 2.0}))
    assert layers.get_hooks() == []


def test_which_controllers_read_the_batch() -> None:
    assert reads_batch(SteeringController(0, VECTOR, "batch"))
    assert reads_batch(FunctionController(0, torch.tanh, strength="batch"))
    others = (SteeringController(0, VECTOR, torch.ones(2)), FunctionController(0, torch.tanh), object())
    assert not any(map(reads_batch, others))


DECODING: dict[str, tuple[dict[str, Any], int]] = {
    "greedy": ({"do_sample": False}, 1),
    "beams": ({"do_sample": False, "num_beams": 3}, 3),
    "beams, several returned": ({"do_sample": False, "num_beams": 4, "num_return_sequences": 2}, 4),
    "samples": ({"do_sample": True, "num_return_sequences": 2}, 2),
}


@pytest.mark.parametrize("how", DECODING)
def test_all_rows_of_a_sample_share_its_strength(how: str) -> None:
    options, each = DECODING[how]
    model, changes = llama().eval(), []
    made: list[Tensor] = []
    block = model.model.layers[1]
    block.register_forward_hook(lambda module, args, output: made.append(output.clone()))
    Layers(model).register_hook(None, SteeringController(1, torch.ones(WIDTH), EACH))
    block.register_forward_hook(lambda module, args, output: changes.append(output - made.pop()))
    torch.manual_seed(0)
    model.generate(**BATCH, **options, max_new_tokens=4)
    for change in changes:
        assert change.shape[0] == 3 * each
        torch.testing.assert_close(change[:, -1, 0], torch.repeat_interleave(EACH, each))


@pytest.mark.parametrize("how", ["greedy", "beams"])
def test_a_batch_of_strengths_generates_what_single_runs_do(how: str) -> None:
    options, model = DECODING[how][0], llama().eval()
    layers, vector = Layers(model), 0.5 * VECTOR

    def generate(strength: Any, batch: dict[str, Tensor] = BATCH) -> list[Tensor]:
        layers.unregister_all_hooks()
        layers.register_hook(None, SteeringController(1, vector, strength, tokens="generated"))
        out = model.generate(
            **batch, **options, max_new_tokens=5, return_dict_in_generate=True, output_logits=True, output_scores=True
        )
        return [out.sequences, torch.stack(out.logits, 1)]

    ids, logits = generate(torch.tensor([0.0, 4.0, -4.0]))
    each = DECODING[how][1]
    for row, strength in enumerate([0.0, 4.0, -4.0]):
        single_ids, single = generate(strength, {name: tensor[row : row + 1] for name, tensor in BATCH.items()})
        assert torch.equal(ids[row], single_ids[0])
        torch.testing.assert_close(logits[row * each : (row + 1) * each], single, rtol=1e-4, atol=1e-4)
    layers.unregister_all_hooks()
    plain = model.generate(**BATCH, **options, max_new_tokens=5)
    assert torch.equal(ids[0], plain[0]) and not torch.equal(ids[1], plain[1])


@pytest.mark.parametrize("given", [2.5, torch.tensor([1.0, 2.0]), "batch", {0: 2.0, "layers.1": 3.0}])
@pytest.mark.parametrize("own", [1.0, torch.ones(3), "batch", {0: 1.0}, lambda ctx: 3])
def test_the_state_keeps_the_strength(given: Any, own: Any) -> None:
    state = FunctionController(0, abs, strength=given).state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    twin = FunctionController(0, abs, strength=own)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin.strength, given) if isinstance(given, torch.Tensor) else twin.strength == given
    twin.load_state_dict({"enabled": False})  # of another class of hooks
    assert not twin.enabled


@pytest.mark.documents("compatibility/a-strength-that-is-a-function-on-resume/controllers")
def test_a_function_is_not_kept_and_that_is_told() -> None:
    state = FunctionController(0, abs, strength=lambda ctx: 3).state_dict()
    assert state == {"enabled": True, "strength": "a function"}
    mine = lambda ctx: 4  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = FunctionController(0, abs, strength=mine)
        same.load_state_dict(state)
    assert same.strength is mine
    other = FunctionController(0, abs, strength=1.5)
    with pytest.warns(UserWarning, match=r"was a function when the checkpoint was written.*goes on with 1.5"):
        other.load_state_dict(state)
    assert other.strength == 1.5


@pytest.mark.parametrize("given", [VECTOR, {1: VECTOR, "layers.0": -VECTOR}])
def test_the_state_keeps_the_vector(given: Any) -> None:
    twin = SteeringController(0, 2 * VECTOR)
    twin.load_state_dict(SteeringController(0, given).state_dict())
    vectors = twin.vector if isinstance(twin.vector, dict) else {"all": twin.vector}
    expected = given if isinstance(given, dict) else {"all": given}
    assert vectors.keys() == expected.keys() and all(torch.equal(vectors[key], expected[key]) for key in vectors)
