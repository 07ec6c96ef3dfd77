"""Whatever is called of a hook, in a pass or outside: its failure is treated as its ``on_error`` says."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from mi_crow_lightning import HookCallback, HookError, LayerActivationDetector, Schedule, SteeringController
from mi_crow_lightning.errors import MiCrowError
from mi_crow_lightning.hooks import Controller, Detector, Layers, Reading
from mi_crow_lightning.metrics.collectives import Share
from mi_crow_lightning.metrics.histogram import Histogram
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, module_of, run, told
from tests.models import WIDTH, handles, trainer

pytestmark = pytest.mark.faults

EVERY = Schedule()
TRAIN = Schedule(stages="train")


class Plain(Detector):
    """A detector with one reading, which needs nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(layer_signature="model.0", **{"schedule": TRAIN, **options})

    def observe(self, x: Tensor, ctx: Any) -> None:
        pass

    def readings(self) -> Any:
        return [Reading("model.0", "one", 1.0)]


class PlainController(Controller):
    def __init__(self, **options: Any) -> None:
        super().__init__(layer_signature="model.0", **{"schedule": EVERY, **options})

    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        return x * 2


def fail(*args: Any) -> Any:
    raise RuntimeError("mine")


def with_own(base: type, name: str, value: Any = fail) -> type:
    """A subclass with one method, or property, that fails."""
    return type(f"With{name}", (base,), {name: value})


def read(value: Any) -> type:
    """A detector with a reading of one value."""
    return with_own(Plain, "readings", lambda self: [value])


def shares(value: Callable[[], Any]) -> type:
    """A detector that yields one share."""

    def share(self: Any) -> Any:
        yield value()

    return with_own(Plain, "share", share)


def goes_on_without(hook: Detector, match: str, **options: Any) -> None:
    """Fit beside another detector: one warning, the other's readings, and the weights of a run without hooks."""
    watch, module, bare = HookCallback([hook, Plain(name="whole")]), module_of(), module_of()
    with told(match, RuntimeWarning):
        pl.seed_everything(1, verbose=False)
        fit(module, data_of(), watch, **options)
    pl.seed_everything(1, verbose=False)
    fit(bare, data_of(), **options)
    assert_bit_equal(fingerprint(module), fingerprint(bare))
    assert [row.step for row in watch.history() if row.tag.startswith("whole")] == [0, 1, 2, 3, 4]
    assert hook.error is not None and handles(module) == {}


BROKEN: dict[str, Any] = {name: with_own(Plain, name) for name in ("readings", "share", "_receive")}
BROKEN["tag_prefix"] = with_own(Plain, "tag_prefix", property(fail))
BROKEN["by_block"] = with_own(Plain, "by_block", property(fail))
BROKEN["a prefix that is not a string"] = with_own(Plain, "tag_prefix", 7)


@pytest.mark.documents("reliability/share-tag-prefix-or-by-block-raises")
@pytest.mark.parametrize("kind", BROKEN)
def test_what_a_reading_asks_of_a_detector(kind: str) -> None:
    detector = BROKEN[kind]()
    detector.layer_signature = ["model.0", "model.3"]  # two, which may make a curve over the blocks
    goes_on_without(detector, r"failed at stage train, batch 0[\s\S]*disabled")


@pytest.mark.documents("reliability/forget-run-raises")
def test_sums_that_are_not_forgotten() -> None:
    goes_on_without(with_own(Plain, "forget_run")(), r"failed: RuntimeError: mine[\s\S]*disabled")


@pytest.mark.documents("reliability/forget-run-raises")
def test_a_controller_that_keeps_an_earlier_run_ends_this_one() -> None:
    watch, module = HookCallback(controllers=with_own(PlainController, "forget_run")()), module_of()
    with pytest.raises(HookError, match="mine"):
        run("predict", trainer(watch), module, data_of())
    assert not watch.controllers[0].registered and handles(module) == {}


@pytest.mark.documents("reliability/prepare-or-check-layers-raises-and-on-error-is-disable")
@pytest.mark.parametrize("where", ["prepare", "check_layers"])
@pytest.mark.parametrize("policy", ["disable", "warn"])
def test_a_hook_that_cannot_be_prepared(where: str, policy: str) -> None:
    goes_on_without(with_own(Plain, where)(on_error=policy), "RuntimeError: mine")


@pytest.mark.documents("reliability/prepare-or-check-layers-raises-and-on-error-is-disable")
def test_a_controller_that_cannot_be_prepared_is_not_called() -> None:
    calls: list[Tensor] = []
    broken = with_own(PlainController, "prepare")(on_error="disable")
    broken.edit = lambda x, ctx: calls.append(x)
    with told("mine[\\s\\S]*disabled", RuntimeWarning):
        found = run("predict", trainer(HookCallback(controllers=broken)), module_of().eval(), data_of())
    assert_bit_equal(found, run("predict", trainer(), module_of().eval(), data_of()))
    assert calls == [] and not broken.enabled


@pytest.mark.documents("reliability/prepare-or-check-layers-raises-and-on-error-is-disable")
def test_wrong_arguments_of_a_hook_that_works_end_the_run_whatever_the_policy() -> None:
    steer = SteeringController("model.3", torch.ones(WIDTH + 1), on_error="disable")
    with pytest.raises(MiCrowError, match=f"{WIDTH + 1} features"):
        run("predict", trainer(HookCallback(controllers=steer)), module_of(), data_of())


HISTOGRAM = Histogram((0.0, 1.0), (1.0,), 0.0, 1.0, 1.0, 0.5, 0.25)
VALUES: dict[str, tuple[Any, str]] = {
    "a number too large": (Reading("model.0", "one", 10**400), "too large for a float"),
    "a tensor": (Reading("model.0", "one", torch.ones(()).double()), "return its .item()"),  # type: ignore[arg-type]
    "a tensor on the meta device": (Reading("model.0", "one", torch.ones(3, device="meta")), ".item"),  # type: ignore
    "a complex number": (Reading("model.0", "one", 1j), "must be a number"),  # type: ignore[arg-type]
    "a text": (Reading("model.0", "one", "1.0"), "must be a number"),  # type: ignore[arg-type]
    "no layer": (Reading(None, "one", 1.0), "must be strings"),  # type: ignore[arg-type]
    "a name that is a number": (Reading("model.0", 3, 1.0), "must be strings"),  # type: ignore[arg-type]
    "a histogram of tensors": (
        Reading("model.0", "one", HISTOGRAM._replace(counts=(torch.ones(()),))),  # type: ignore[arg-type]
        "a Histogram holds numbers",
    ),
    "no reading": (("model.0", "one", 1.0), "must return Reading"),
}


@pytest.mark.documents("reliability/a-reading-is-not-a-number-or-too-large-for-a-float")
@pytest.mark.parametrize("kind", VALUES)
def test_a_reading_that_no_logger_could_show(kind: str) -> None:
    value, match = VALUES[kind]
    goes_on_without(read(value)(), match)


@pytest.mark.documents("reliability/a-reading-is-not-a-number-or-too-large-for-a-float")
def test_outside_a_trainer_readings_are_checked_as_well() -> None:
    model, detector = module_of().model, read(Reading("0", "one", 10**400))(schedule=None, on_error="warn")
    layers = Layers(model)
    layers.register_hook("0", detector)
    with told("too large for a float", RuntimeWarning):
        assert layers.take_readings() == []


SHARES: dict[str, tuple[Any, str]] = {
    "not a share": (shares(lambda: torch.ones(2)), r"must yield Share\(tensor, merge\), not a Tensor"),
    "on the meta device": (shares(lambda: Share(torch.ones(2, device="meta"), sum)), "meta device"),  # type: ignore
    "sparse": (shares(lambda: Share(torch.eye(2).to_sparse(), sum)), "dense floating-point"),  # type: ignore[arg-type]
    "whole numbers": (shares(lambda: Share(torch.ones(2).long(), sum)), "dense floating-point"),  # type: ignore
}


@pytest.mark.documents("reliability/share-yields-what-ranks-cannot-exchange")
@pytest.mark.parametrize("kind", SHARES)
def test_a_share_without_numbers(kind: str) -> None:
    hook, match = SHARES[kind]
    goes_on_without(hook(), match)


@pytest.mark.documents("reliability/share-yields-what-ranks-cannot-exchange")
def test_activations_that_are_kept_without_their_numbers() -> None:
    detector = LayerActivationDetector("model.0", schedule=TRAIN)
    detector.device = torch.device("meta")  # which the constructor refuses
    goes_on_without(detector, "meta device[\\s\\S]*disabled")


@pytest.mark.documents("reliability/state-dict-holds-what-a-checkpoint-cannot")
@pytest.mark.parametrize("state", [{"lock": threading.Lock()}, {"made": lambda: 1}, ["enabled"]])
def test_a_state_that_cannot_be_written_costs_no_checkpoint(tmp_path: Path, state: Any) -> None:
    broken = with_own(Plain, "state_dict", lambda self: state)(hook_id="broken")
    watch = HookCallback([broken, Plain(hook_id="whole", name="whole")])
    with told("state_dict\\(\\) must[\\s\\S]*disabled", RuntimeWarning):
        fit(module_of(), data_of(), watch, enable_checkpointing=True, default_root_dir=tmp_path)
    (saved,) = tmp_path.rglob("*.ckpt")
    (state,) = [of for key, of in torch.load(saved, weights_only=True)["callbacks"].items() if "HookCallback" in key]
    assert list(state["hooks"]) == ["whole"]


@pytest.mark.documents("reliability/state-dict-raises-after-the-run")
def test_a_checkpoint_after_the_run_is_written_without_the_state(tmp_path: Path) -> None:
    watch = HookCallback([with_own(Plain, "state_dict")(hook_id="broken"), Plain(hook_id="whole", name="whole")])
    runner = fit(module_of(), data_of(), watch)
    with told("RuntimeError: mine", RuntimeWarning):
        runner.save_checkpoint(tmp_path / "a.ckpt")
    (state,) = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].values()
    assert list(state["hooks"]) == ["whole"]


@pytest.mark.documents("reliability/state-dict-raises-after-the-run")
def test_a_checkpoint_after_the_run_is_not_written_without_a_controllers_state(tmp_path: Path) -> None:
    controller = with_own(PlainController, "state_dict")(schedule=TRAIN)
    runner = fit(module_of(), data_of(), HookCallback(controllers=controller))
    with pytest.raises(HookError, match="mine"):
        runner.save_checkpoint(tmp_path / "a.ckpt")


def mutual(depth: int) -> None:
    """Go down in two functions by turns, which Python's own tracebacks do not fold."""
    other(depth)


def other(depth: int) -> None:
    if depth == 0:
        raise ValueError("deep down")
    mutual(depth - 1)


def chained(links: int) -> None:
    try:
        if links:
            chained(links - 1)
        raise ValueError("first" if not links else "then")
    except ValueError as error:
        raise ValueError(f"link {links}") from error


def wordy() -> None:
    raise ValueError("word " * 200_000)


LONG: dict[str, tuple[Callable[[], None], str]] = {
    "deep": (lambda: mutual(200), "ValueError: deep down"),
    "chained": (lambda: chained(100), "ValueError: link 100"),
    "recursive": (lambda: mutual(10**6), "RecursionError: "),
    "wordy": (wordy, "ValueError: word word"),
}


class Fails(Detector):
    def __init__(self, function: Callable[[], None], **options: Any) -> None:
        super().__init__(layer_signature="model.0", schedule=EVERY, **options)
        self.function = function

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.function()


@pytest.mark.documents("reliability/an-error-has-hundreds-of-frames-or-a-message-of-megabytes")
@pytest.mark.parametrize("kind", LONG)
def test_a_warning_stays_short_and_holds_the_cause(kind: str) -> None:
    function, last = LONG[kind]
    with told(r"disabled", RuntimeWarning) as texts:
        fit(module_of(), data_of(), HookCallback(Fails(function)))
    text = texts[0]
    assert len(text) < 20_000 and len(text.splitlines()) < 50
    assert last in text and "in observe" in text


@pytest.mark.documents("reliability/an-error-is-shown-in-a-notebook")
@pytest.mark.parametrize("kind", LONG)
def test_a_notebook_shows_the_users_frames_and_the_cause(kind: str) -> None:
    function, last = LONG[kind]
    with pytest.raises(HookError) as raised:
        fit(module_of(), data_of(), HookCallback(Fails(function, on_error="raise")))
    lines = raised.value._render_traceback_()
    assert len(lines) < 130 and sum(map(len, lines)) < 30_000
    assert any(last in line for line in lines) and "HookError: Fails (forward) failed at layer" in lines[-1]
    assert any("in test_a_notebook_shows" in line for line in lines) and any("in observe" in line for line in lines)


@pytest.mark.documents("reliability/an-error-is-shown-in-a-notebook")
def test_a_wrong_width_takes_a_few_lines_in_a_notebook() -> None:
    """The frames of torch and Lightning are left out, and counted."""
    steer = SteeringController("model.3", torch.ones(7), schedule=EVERY)
    with pytest.raises(MiCrowError) as raised:
        fit(module_of(), data_of(), HookCallback(controllers=steer))
    lines, whole = raised.value._render_traceback_(), "".join(traceback.format_exception(raised.value)).splitlines()
    assert len(lines) < 25 < len(whole) and "7 features" in lines[-1]
    assert any("through lightning, mi_crow_lightning" in line for line in lines)


class Secretive(ValueError):
    """An error that raises whatever it is asked."""

    def __str__(self) -> str:
        raise RuntimeError("no message for you")

    __repr__ = __str__


def keep_a_secret(*args: Any) -> Any:
    raise Secretive


@pytest.mark.documents("reliability/an-error-without-a-message-outside-a-pass")
@pytest.mark.parametrize("where", ["share", "readings", "reset", "forget_run", "prepare", "tag_prefix"])
def test_an_error_that_cannot_be_shown(where: str) -> None:
    value = property(keep_a_secret) if where == "tag_prefix" else keep_a_secret
    detector = with_own(Plain, where, value)(on_error="disable")
    goes_on_without(detector, r"Secretive: \(its message cannot be shown[\s\S]*disabled")


@pytest.mark.documents("reliability/an-error-without-a-message-outside-a-pass")
def test_a_notebook_shows_an_error_that_cannot_be_shown() -> None:
    with pytest.raises(HookError) as raised:
        fit(module_of(), data_of(), HookCallback(Fails(keep_a_secret, on_error="raise")))
    assert any("its message cannot be shown" in line for line in raised.value._render_traceback_())
