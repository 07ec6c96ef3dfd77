"""``attached``: on the model for as long as the block runs, and around ``generate``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    ActivationStatistics,
    ContrastDetector,
    HookError,
    LayerActivationDetector,
    Schedule,
    SteeringController,
    attached,
)
from mi_crow_lightning.errors import HookConflict, LayerNotFound, NeverFired, RegistrationError
from tests.callback.runs import FailingController, FailingDetector
from tests.hooks.attachable import X, double, mean_of
from tests.hooks.by_hand import endless
from tests.models import WIDTH, assert_same_handles, handles, llama, mlp, token_data


def numbers(readings: Any) -> dict[tuple[str, str], float]:
    return {(reading.layer, reading.name): reading.value for reading in readings}


@pytest.mark.documents("compatibility/attached-in-a-bare-loop/controllers")
def test_hooks_are_on_in_the_block_and_off_after_it() -> None:
    model = mlp().eval()
    bare, before = model(X), handles(model)
    held, edit = LayerActivationDetector("5"), double("5")
    with attached(model, [held, edit]) as layers:
        assert torch.equal(model(X), 2 * bare)
        assert layers.get_hooks() == [held, edit] and held.registered
        edit.disable()
        assert torch.equal(model(X), bare)
    assert torch.equal(held.get_captured(), bare)
    assert not held.registered and layers.get_hooks() == []
    assert torch.equal(model(X), bare)
    assert_same_handles(before, model)


def test_one_hook_needs_no_list_and_any_iterable_will_do() -> None:
    model = mlp().eval()
    bare = model(X)
    with attached(model, double("5")):
        assert torch.equal(model(X), 2 * bare)
    with attached(model, (double("5") for _ in range(3))):  # several on one layer
        assert torch.equal(model(X), 8 * bare)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop, GeneratorExit])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_stays_however_the_block_ends(error: type[BaseException], inside: bool) -> None:
    model, detector = mlp(), LayerActivationDetector("0")

    def fail(*call: Any) -> None:
        raise error

    model[0].register_forward_hook(lambda *call: None)  # someone else's
    if inside:
        model[3].register_forward_hook(fail)
    before = handles(model)
    with pytest.raises(error), attached(model, [detector, double("5")]):
        model(X) if inside else fail()
    assert not detector.registered
    assert_same_handles(before, model)


def test_leaving_a_block_early_takes_the_hooks_off() -> None:
    model = mlp().eval()

    def first(count: int) -> Tensor:
        for _ in range(count):
            with attached(model, double("5")):
                return model(X)
        raise AssertionError

    assert torch.equal(first(2), 2 * model(X))
    assert handles(model) == {}


@pytest.mark.documents(
    "compatibility/a-schedule-in-attached/detectors", "compatibility/a-schedule-in-attached/controllers"
)
@pytest.mark.parametrize(
    ("second", "error", "words"),
    [
        (mean_of("9"), LayerNotFound, "the model has 6 blocks"),
        (mean_of("0", schedule=Schedule(stages="train")), RegistrationError, "which only a HookCallback follows"),
        (double("0", schedule=Schedule(stages="train")), RegistrationError, "which only a HookCallback follows"),
        (ActivationStatistics(), RegistrationError, "names no layer: give layer_signature="),
        ("block:0", TypeError, "hooks holds 'block:0', which is a str, not a hook"),
    ],
)
def test_what_cannot_be_attached_leaves_nothing(second: Any, error: type[Exception], words: str) -> None:
    model, first = mlp(), mean_of("0")
    with pytest.raises(error, match=words), attached(model, [first, second]):
        raise AssertionError("the block is not entered")
    assert handles(model) == {} and not first.registered


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(TypeError, match="hooks=3 must be a hook or a list of hooks, not a int"), attached(mlp(), 3):  # type: ignore[arg-type]
        pass
    with pytest.raises(TypeError, match=r"model=.* must be a torch module"), attached([double()], mlp()):  # type: ignore[arg-type]
        pass


def test_a_hook_is_registered_once() -> None:
    model, detector = mlp(), LayerActivationDetector("0")
    with pytest.raises(
        HookConflict,
        match=r"^LayerActivationDetector\(.*'0'\), or a copy of it, is already registered here",
    ):
        attached(model, [detector, detector]).__enter__()
    with attached(model, detector):
        with pytest.raises(HookConflict, match="is already registered, with a LanguageModel"):
            attached(mlp(), detector).__enter__()
        model(X)
        assert detector.registered
    assert handles(model) == {}


def test_blocks_nest_and_the_inner_one_ends_first() -> None:
    model = mlp().eval()
    bare, seen = model(X), LayerActivationDetector("5")
    with attached(model, [double("5"), seen]):
        with attached(model, double("5")):
            assert torch.equal(model(X), 4 * bare)
        assert torch.equal(seen.get_captured(), 4 * bare)  # after all edits, also those of the inner block
        assert torch.equal(model(X), 2 * bare)
    assert torch.equal(model(X), bare) and handles(model) == {}


def test_one_detector_in_two_blocks_begins_anew() -> None:
    model, detector = mlp().eval(), mean_of("0")
    means = []
    for x in (X, 5 * X):
        with attached(model, detector), torch.no_grad():
            model(x)
            want = model[0](x).mean().item()
        means.append((numbers(detector.readings())["0", "mean"], want))  # also after the block
    assert [got for got, _ in means] == pytest.approx([want for _, want in means])
    assert means[0][1] != means[1][1]


@pytest.mark.documents("compatibility/attached-in-a-bare-loop/logging")
def test_take_readings_gives_what_was_seen_since_the_last_time() -> None:
    model, loud = mlp().eval(), double("0")
    with attached(model, [mean_of("0"), mean_of("5", name="end"), LayerActivationDetector("3"), loud]) as layers:
        assert layers.take_readings() == []
        model(X)
        first = layers.take_readings()
        assert [(r.layer, r.name) for r in first] == [
            *(("0", "mean"), ("5", "mean")),
            *(("3", name) for name in ("mean", "std", "token_norm", "histogram")),
        ]
        assert layers.take_readings() == []
        model(3 * X)
        assert numbers(layers.take_readings())["0", "mean"] != numbers(first)["0", "mean"]


def test_the_error_of_a_hook_is_raised_when_the_pass_is_over() -> None:
    model = mlp().eval()
    bare, reached = model(X), LayerActivationDetector("5")
    for failing in (FailingController("0"), FailingDetector("0")):
        with attached(model, [failing, reached]):
            with pytest.raises(HookError, match="broke") as caught:
                model(X)
            assert torch.equal(caught.value.outputs, bare) and torch.equal(reached.get_captured(), bare)
            model(X)  # it fails once
    with attached(model, FailingDetector("0", on_error="warn")), pytest.warns(RuntimeWarning, match="broke"):
        model(X)


def test_readings_that_fail_are_a_hook_error() -> None:
    class Unreadable(LayerActivationDetector):
        def readings(self) -> list[Any]:
            raise ZeroDivisionError

    model = mlp()
    with attached(model, Unreadable("0", hook_id="unreadable")) as layers:
        model(X)
        with pytest.raises(HookError, match="Unreadable 'unreadable'"):
            layers.take_readings()


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_layers_that_never_ran_are_told_at_the_end() -> None:
    model = Branches()
    words = r"ScaleController\(.* was on in this block, but these of its 1 layers never ran: spare\. Nothing was edited"
    with pytest.raises(NeverFired, match=words), attached(model, double("spare")):
        model(X)
    with pytest.warns(UserWarning, match="these of its 1 layers never ran: spare$"), attached(model, mean_of("spare")):
        model(X)
    with pytest.warns(UserWarning, match="these of its 2 layers never ran: spare$"), attached(model, double("*")):
        model(X)
    assert handles(model) == {}


def test_what_is_switched_off_and_what_ends_in_an_error_is_not_asked_whether_it_ran() -> None:
    model, off = Branches(), double("spare")
    off.disable()
    with attached(model, off):
        model(X)
    with pytest.raises(ZeroDivisionError), attached(model, double("spare")):
        raise ZeroDivisionError


def test_masks_are_those_that_the_model_is_called_with() -> None:
    model, batch = llama().eval(), torch.utils.data.default_collate(token_data(6))
    detector, held = mean_of("block:1"), LayerActivationDetector("block:1")
    with attached(model, [detector, held]) as layers, torch.no_grad():
        model(**batch)
        (reading,) = layers.take_readings()[:1]
    real = held.get_captured()[batch["attention_mask"].bool()]
    assert 0 < len(real) < batch["input_ids"].numel()
    assert reading.value == pytest.approx(real.double().mean().item(), rel=1e-6)


def test_generate_is_followed() -> None:
    model, prompt = endless(llama().eval()), torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    read = {which: ActivationStatistics("block:1", tokens=which) for which in ("prompt", "generated")}
    for name, detector in read.items():
        detector.name = name
    bare = model.generate(prompt, **options)
    with attached(model, [*read.values(), SteeringController("block:2", torch.ones(WIDTH), 50.0, "generated")]):
        steered = model.generate(prompt, **options)
    totals = {
        which: next(r.value.total for r in detector.readings() if r.name == "histogram") / WIDTH
        for which, detector in read.items()
    }
    assert totals == {"prompt": 4, "generated": 3}
    assert not torch.equal(steered, bare) and torch.equal(model.generate(prompt, **options), bare)
    assert "generate" not in model.__dict__


def test_hooks_that_read_the_batch_are_given_it() -> None:
    model = mlp().eval()
    contrast, steer = ContrastDetector("3"), SteeringController("5", torch.ones(5), strength="batch")
    x = torch.stack([torch.zeros(8), torch.ones(8)])
    with torch.no_grad():
        bare, inner = model(x), model[:4](x)
    with attached(model, [contrast, steer]) as layers, torch.no_grad():
        layers.begin_batch(None, {"label": [0, 1], "strength": torch.tensor([0.0, 2.0])})
        steered = model(x)
    assert torch.equal(steered, bare + torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(contrast.vectors()["3"], inner[1] - inner[0])


def test_a_model_compiled_before_ignores_hooks_and_that_is_told() -> None:
    model = mlp().eval()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    with pytest.raises(NeverFired, match="these of its 1 layers never ran: 5"), attached(compiled, double("5")):
        compiled(X)


def test_a_copy_of_the_model_made_in_the_block_has_no_hooks() -> None:
    model = mlp().eval()
    bare = model(X)
    with attached(model, double("5")):
        model(X)
        assert torch.equal(copy.deepcopy(model)(X), bare)
