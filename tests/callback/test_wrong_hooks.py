"""Hooks that return what they must not, do not fit their layer, fail outside of a pass, or never run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    ActivationStatistics,
    Controller,
    Detector,
    FunctionController,
    Hook,
    HookCallback,
    HookError,
    NeverFired,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import EditMismatch, NoTensorFound, TagConflict, VectorMismatch
from mi_crow_lightning.hooks.reading import Reading
from tests.callback.runs import OnEvent, Seen, data_of, fit, module_of, run, told
from tests.models import Module, mlp, trainer

EVERY = Schedule()


class Returning(Detector):
    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
        return input[0] * 2 if output is None else output * 2


@pytest.mark.documents("reliability/a-detector-returns-something")
@pytest.mark.parametrize("hook_type", ["forward", "pre_forward"])
def test_a_detector_that_returns_something_is_disabled(hook_type: str) -> None:
    bare = module_of()
    fit(bare, data_of())
    watched = module_of()  # made now: making it seeds the random state
    with told("is a detector, but its _hook_fn returned a Tensor: detectors only observe", RuntimeWarning):
        fit(watched, data_of(), HookCallback(detectors=Returning("model.0", hook_type)))
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


class Made(Controller):
    """Returns what a function makes of the activation, unchecked."""

    def __init__(self, make: Any, **options: Any) -> None:
        super().__init__(layer_signature="model.0", **options)
        self.make = make

    def edit(self, x: Tensor, ctx: Any) -> Any:
        return self.make(x)


@pytest.mark.documents("reliability/an-edit-of-another-shape-dtype-or-device-or-no-tensor")
@pytest.mark.parametrize("hook_type", ["forward", "pre_forward"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x[:, :1], r"must keep the shape: it was given \(4, \d+\) and returned \(4, 1\)"),
        (lambda x: x.half(), r"must keep the dtype: it was given torch.float32 and returned torch.float16"),
        (lambda x: x.to("meta"), r"must keep the device: it was given cpu and returned meta"),
        (lambda x: x.tolist(), r"must return a tensor or None, not a list"),
    ],
    ids=["shape", "dtype", "device", "list"],
)
def test_a_controller_must_keep_the_form(make: Any, message: str, hook_type: str) -> None:
    with pytest.raises(HookError, match=message) as caught:
        run("predict", trainer(HookCallback(controllers=Made(make, hook_type=hook_type))), module_of(), data_of())
    assert isinstance(caught.value.original_error, EditMismatch)


def test_a_vector_of_another_width() -> None:
    """No input of this model is known before the run, so its first activation shows the width."""
    steer = HookCallback(controllers=SteeringController("model.1", torch.ones(7)))
    with pytest.raises(HookError, match=r"vector has 7 features, and the activation of .* has 32") as caught:
        run("predict", trainer(steer), module_of(), data_of())
    assert isinstance(caught.value.original_error, VectorMismatch)


@pytest.mark.documents("reliability/the-layers-output-holds-no-tensor")
def test_an_output_without_a_tensor() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            self.x = x
            return {"size": len(x)}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.opaque = mlp(), Opaque()

        def forward(self, x: Tensor) -> Tensor:
            self.opaque(x)
            return self.inner(x)

    with told(r"NoTensorFound: the layer's output holds no tensor: it is dict \('size': int\)", RuntimeWarning):
        fit(Module(Outer()), data_of(), HookCallback(detectors=Seen("opaque")))
    edit = FunctionController("opaque", lambda x: x)
    with pytest.raises(HookError, match="holds no tensor") as caught:
        run("predict", trainer(HookCallback(controllers=edit)), Module(Outer()), data_of())
    assert isinstance(caught.value.original_error, NoTensorFound) and caught.value.shape is None


class BadReadings(Seen):
    """Fails when it is asked for readings, or to reset."""

    def __init__(self, where: str, **options: Any) -> None:
        super().__init__(**options)
        self.where, self.asked = where, 0

    def reading_names(self) -> tuple[str, ...]:
        return ("calls",)

    def readings(self) -> Any:
        self.asked += 1
        if self.where == "generator":
            return (Reading("model.0", "calls", [][0]) for _ in range(1))
        if self.where == "readings":
            raise ValueError("no readings today")
        return [Reading("model.0", "calls", float(len(self.calls)))]

    def reset(self) -> None:
        if self.where == "reset":
            raise ValueError("no reset today")


@pytest.mark.documents("reliability/readings-or-reset-raises-or-gives-no-readings")
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("readings", "no readings today"),
        ("generator", "IndexError: list index out of range"),
        ("reset", "no reset today"),
    ],
)
def test_failing_outside_of_a_pass_disables_once(where: str, words: str) -> None:
    bad, other = BadReadings(where), ActivationStatistics("model.0", statistics=["mean"])
    watch = HookCallback(detectors=[bad, other])
    with told(f"disabled from now on[\\s\\S]*{words}", RuntimeWarning) as texts:
        fit(module_of(), data_of(), watch)
    assert "stage train, batch 0" in texts[0]
    assert (bad.asked, len(bad.calls), bad.enabled) == (1, 1, False)
    assert [row.step for row in watch.history() if row.name == "mean"] == [0, 1, 2, 3, 4]


def test_failing_outside_of_a_pass_raises_if_asked_to() -> None:
    with pytest.raises(HookError, match="stage train, batch 0: ValueError: no readings today"):
        fit(module_of(), data_of(), HookCallback(detectors=BadReadings("readings", on_error="raise")))


class Detour(Module):
    """Its spare layer runs in no stage."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.spare = nn.Linear(2, 2)


@pytest.mark.documents("reliability/a-controller-with-may-skip-true-never-runs-in-a-stage")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_controller_whose_layers_never_run_is_an_error(stage: str) -> None:
    edit = FunctionController("spare", lambda x: x, may_skip=True, schedule=EVERY)
    words = r"was on in stage '\w+', but these of its 1 layers never ran: spare\. Nothing was edited"
    with pytest.raises(NeverFired, match=words):
        run(stage, trainer(HookCallback(controllers=edit)), Detour(), data_of())


@pytest.mark.documents("reliability/some-layers-or-a-detectors-never-run")
def test_some_silent_layers_are_told_by_name() -> None:
    edit = FunctionController("*", lambda x: x * 2)
    with told(r"these of its 8 layers never ran: spare$"):
        run("predict", trainer(HookCallback(controllers=edit)), Detour(), data_of())


@pytest.mark.documents("reliability/some-layers-or-a-detectors-never-run")
def test_a_silent_detector_is_told_once_per_stage() -> None:
    watch = HookCallback(detectors=Seen("spare", schedule=Schedule(stages=["train", "test"])))
    module = Detour()
    with told("was on in stage 'train', but these of its 1 layers never ran: spare"):
        run("fit", trainer(watch), module, data_of())
    run("validate", trainer(watch), module, data_of())
    with told("was on in stage 'test'"):
        run("test", trainer(watch), module, data_of())


@pytest.mark.documents("reliability/several-detectors-on-a-layer-that-never-runs")
@pytest.mark.parametrize("others", [["spare"], ["spare", "spare"], ["*"]])
def test_a_silent_layer_is_told_once_for_all_its_detectors(others: list[str]) -> None:
    watch = HookCallback(detectors=[Seen(signature) for signature in ["spare", *others]])
    with told("was on in stage 'test', but these of its 1 layers never ran: spare$") as texts:
        run("test", trainer(watch), Detour(), data_of())
    assert len(texts) == 1


@pytest.mark.documents("reliability/several-detectors-on-a-layer-that-never-runs")
def test_another_silent_layer_of_a_later_detector_is_told_too() -> None:
    module = Detour()
    module.other = nn.Linear(2, 2)
    watch = HookCallback(detectors=[Seen("spare"), Seen(["spare", "other"])])
    with told(r"never ran: (spare|other)$", times=2) as texts:
        run("test", trainer(watch), module, data_of())
    assert "these of its 2 layers never ran: other" in texts[1]


@pytest.mark.filterwarnings("ignore:Found 1 module:UserWarning")
def test_layers_in_evaluation_mode_are_counted_once() -> None:
    module = module_of()
    module.model[0].eval()
    watch = HookCallback([Seen("model.*"), Seen("model.0")], FunctionController("model.*", abs))
    with told("1 of 6 hooked layers are in evaluation mode"):
        fit(module, data_of(), watch)


def test_a_hook_that_was_never_on_is_not_missed() -> None:
    off = FunctionController("spare", lambda x: x, hook_id="off")
    off.disable()
    never_due = FunctionController("spare", lambda x: x, schedule=Schedule(epochs=5))
    with told("(never ran|changed nothing)", times=0):
        run("predict", trainer(HookCallback(controllers=[off, never_due])), Detour(), data_of())


def test_a_plain_hook_may_do_both() -> None:
    class Plain(Hook):
        calls = 0

        def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
            self.calls += 1
            return output * 0

    plain, seen = Plain("model.3"), Seen("model.3", schedule=EVERY)
    last = OnEvent("on_predict_batch_end", lambda trainer, module, index: None)
    outputs = run("predict", trainer(HookCallback(seen, plain), last), module_of().eval(), data_of())
    assert plain.calls == len(seen.calls) == 5
    assert torch.equal(outputs[0][0], outputs[1][1])


class Reads(Detector):
    """Hands the loggers whatever it was made with."""

    def __init__(self, *given: Any, names: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__("model.0", **options)
        self.given, self.names, self.asked = given, names, 0

    def observe(self, x: Tensor, ctx: Any) -> None:
        pass

    def reading_names(self) -> tuple[str, ...]:
        return self.names

    def readings(self) -> Any:
        self.asked += 1
        return self.given


@pytest.mark.documents("reliability/readings-or-reset-raises-or-gives-no-readings")
@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ({"mean": 1.0}, (), r"readings\(\) must return Reading\(layer, name, value\), not \{'mean': 1.0\}"),
        (("model.0", "mean", 1.0), (), r"readings\(\) must return Reading"),
        (Reading("model.0", "mean", "high"), (), "must be a number or a Histogram"),
        (Reading("model.0", "mean", torch.ones(2)), (), r"for a tensor return its .item\(\)"),
        (Reading("model.0", "mean", 1.0), ("std",), r"returned 'mean', which is not in reading_names\(\) \('std',\)"),
    ],
)
def test_what_is_no_reading_disables_its_detector(given: Any, names: tuple[str, ...], message: str) -> None:
    detector = Reads(given, names=names)
    with told(f"Reads .*{message}", RuntimeWarning):
        fit(module_of(), data_of(), HookCallback(detectors=detector))
    assert not detector.enabled and detector.asked == 1


def test_a_detector_is_asked_only_where_it_was_on() -> None:
    detector = Reads(Reading("model.0", "mean", 1.0), schedule=Schedule(stages="validate"))
    watch = HookCallback(detectors=detector)
    run("fit", trainer(watch, num_sanity_val_steps=0), module_of(), data_of())
    assert [row.stage for row in watch.history()] == ["validate"] and detector.asked == 1


def test_two_undeclared_readings_of_one_tag_are_refused() -> None:
    watch = HookCallback(detectors=[Reads(Reading("model.0", "mean", value)) for value in (1.0, 2.0)])
    with pytest.raises(TagConflict, match=r"two readings of one step have the tag 'activations_mean/model.0': give"):
        fit(module_of(), data_of(), watch)


@pytest.mark.documents("reliability/a-controller-returns-none-each-time")
def test_a_controller_that_returns_nothing_is_told() -> None:
    class Forgets(Controller):
        def edit(self, x: Tensor, ctx: Any) -> None:
            x * 2

    with told("Forgets.* ran in stage 'predict' and changed nothing"):
        run("predict", trainer(HookCallback(controllers=Forgets("model.0"))), module_of(), data_of())
