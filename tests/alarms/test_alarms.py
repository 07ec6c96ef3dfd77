"""Alarms in a Trainer: what fires, where, when, what is done, and what stays as it is without a fault."""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mi_crow_lightning import (
    ActivationStatistics,
    DriftDetector,
    FunctionController,
    HookCallback,
    ScaleController,
    Schedule,
)
from mi_crow_lightning.alarms import (
    Action,
    Alarm,
    DeadShare,
    Drift,
    Firing,
    Jump,
    LogEvent,
    NonFinite,
    NormGrowth,
    Rule,
    SaveCheckpoint,
    Snapshot,
    Stop,
    SwitchOff,
    Threshold,
    Trend,
    WithoutEffect,
    default_alarms,
    load_snapshot,
    replay,
)
from mi_crow_lightning.alarms.snapshot_file import FIELDS, FORMAT, plain, save_snapshot
from mi_crow_lightning.loggers import read_events
from tests.callback.runs import Trace, assert_bit_equal, data_of, fingerprint, fit, module_of, told
from tests.models import (
    KINDS,
    Module,
    assert_same_handles,
    handles,
    llama,
    loader,
    mlp,
    token_data,
    trainer,
    vector_data,
)

NAN_AT = 3  # the training batch in which a fault is planted


class Faulty(Module):
    """A module that spoils the output of a layer, or its gradient, in one training batch."""

    def __init__(self, kind: str = "mlp", layer: str = "model.3", at: int = NAN_AT, backward: bool = False) -> None:
        super().__init__(KINDS[kind][0]())
        self.at, self.batch = at, -1
        self.in_backward = backward
        self.get_submodule(layer).register_forward_hook(self._spoil)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batch = batch_idx
        return super().training_step(batch, batch_idx)

    def _spoil(self, layer: Any, args: Any, output: Tensor) -> Tensor | None:
        if self.batch != self.at or not self.training:
            return None
        if self.in_backward:
            output.register_hook(lambda gradient: gradient * math.nan)
            return None
        return output * math.nan


class Noting(Action):
    def __init__(self) -> None:
        self.seen: list[Firing] = []

    def act(self, firing: Firing, run: Any) -> None:
        self.seen.append(firing)


def watching(*alarms: Alarm, **options: Any) -> HookCallback:
    return HookCallback(ActivationStatistics("model.*"), alarms=alarms, **options)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "llama"])
def test_a_run_in_which_nothing_fires_is_bit_identical(kind: str, tmp_path: Path) -> None:
    found = []
    for alarms in ([], [*default_alarms(), Alarm(NonFinite(), [Snapshot(tmp_path), Stop(), SaveCheckpoint(tmp_path)])]):
        torch.manual_seed(1)
        module, trace = module_of(kind), Trace()
        before = handles(module)
        watch = HookCallback(ActivationStatistics(KINDS[kind][2]), alarms=alarms)
        runner = fit(module, data_of(kind), trace, watch, max_epochs=2, accumulate_grad_batches=2)
        found.append((trace.losses, trace.states, fingerprint(module, runner), watch.history().to_pandas().to_dict()))
        assert_same_handles(before, module)
        assert watch.fired() == [] and not list(tmp_path.iterdir())
    assert_bit_equal(*found)


@pytest.mark.documents(
    "reliability/an-activation-is-nan-in-forward-with-a-nonfinite-alarm",
    "reliability/a-gradient-is-nan-in-backward-with-a-nonfinite-alarm",
)
@pytest.mark.parametrize(("backward", "layer"), [(False, "model.3"), (True, "model.3")])
def test_non_finite_values_are_named_before_the_weights_change(backward: bool, layer: str, tmp_path: Path) -> None:
    module = Faulty(backward=backward)
    kept: list[Any] = []

    class Before(Action):
        def act(self, firing: Firing, run: Any) -> None:
            kept.append({name: one.clone() for name, one in run.module.state_dict().items()})

    noting = Noting()
    watch = watching(Alarm(NonFinite(), [noting, Before(), "stop", Snapshot(tmp_path)]))
    with told("alarm NonFinite: .*a snapshot of the pass is in", RuntimeWarning):
        runner = fit(module, data_of(), watch, max_epochs=3)
    (firing,) = watch.fired()
    assert noting.seen == [firing]
    assert (firing.layer, firing.stage, firing.step, firing.batch_idx, firing.rank) == (layer, "train", 3, 3, 0)
    assert ("gradients" in firing.text) is backward and firing.before_step
    assert runner.global_step == NAN_AT + 1
    assert_bit_equal(kept[0], dict(module.state_dict()))
    assert all(bool(one.isfinite().all()) for one in module.state_dict().values())
    (file,) = tmp_path.iterdir()
    again = replay(file, Faulty(backward=backward))
    assert again.same and (again.gradient_layer if backward else again.layer) == layer
    assert not replay(file, module_of()).same  # a model without the fault
    failing = module_of()
    failing.loss = lambda batch: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    left = handles(failing)
    with pytest.raises(ZeroDivisionError):
        replay(file, failing)
    assert_same_handles(left, failing)


def test_micro_batches_of_a_step_are_counted() -> None:
    module = Faulty(at=3)
    watch = watching(Alarm(NonFinite(), "log"))
    fit(module, data_of(), watch, accumulate_grad_batches=3)
    assert [(one.step, one.batch_idx) for one in watch.fired()] == [(1, 3)]


def test_an_alarm_fires_once_until_all_is_in_order_and_not_for_ever() -> None:
    class Always(Rule):
        def judge(self, values: Any) -> str | None:
            return "is there"

    class EverySecond(Rule):
        def __init__(self) -> None:
            super().__init__("loss")
            self.calls = 0

        def judge(self, values: Any) -> str | None:
            self.calls += 1
            return "is odd" if self.calls % 2 else None

    watch = watching(Alarm(Always("rms"), "log"), Alarm(EverySecond(), "log", most=2))
    fit(module_of(), data_of(), watch, max_epochs=3)
    (always,) = (one for one in watch.fired() if one.alarm == "Always")
    others = [one for one in watch.fired() if one is not always]
    assert always.layers == tuple(f"model.{index}" for index in range(6)) and always.layer == "model.0"
    assert [(one.alarm, one.step, one.layer) for one in others] == [("EverySecond", 0, ""), ("EverySecond", 2, "")]


def test_events_are_in_the_event_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path))
    watch = watching(Alarm(NonFinite(), "warn"), Alarm(Threshold("rms", above=0), "log", name="too large"))
    with told("alarm NonFinite", RuntimeWarning):
        fit(Faulty(), data_of(), watch, logger=logger)
    events = list(read_events(logger.log_dir))
    assert [row.kind for row in events if row.kind != "switch"] == ["alarm"] * 2  # none that it warned of it too
    rows = [row for row in events if row.kind == "alarm"]
    assert [(row.step, row.layer) for row in rows] == [(0, "model.0"), (NAN_AT, "model.3")]
    assert rows[0].text.startswith("alarm too large: layer 'model.0' (and 5 more layers) is at")


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before:UserWarning")
def test_a_checkpoint_is_of_before_the_step_and_can_be_resumed(tmp_path: Path) -> None:
    watch = watching(Alarm(NonFinite(), [SaveCheckpoint(tmp_path), "stop"]))
    fit(Faulty(), data_of(), watch)
    (file,) = tmp_path.iterdir()
    assert file.name == "NonFinite-train-step3.ckpt"
    module, other = module_of(), HookCallback(ActivationStatistics("model.*"))
    runner = trainer(other, max_epochs=1, limit_val_batches=0, num_sanity_val_steps=0)
    with told("written in the middle of a training batch"):
        runner.fit(module, loader(data_of()), loader(data_of()), ckpt_path=file)
    assert len({row.step for row in other.history()}) == 2  # the batch that failed, and the last


@pytest.mark.documents("reliability/a-controller-is-on-and-changes-nothing-with-a-withouteffect-alarm")
def test_a_controller_is_switched_off() -> None:
    idle = FunctionController("model.0", lambda x: x + 0, hook_id="idle", schedule=Schedule(stages="train"))
    other = ScaleController("model.3", 1.5, hook_id="other", schedule=Schedule(stages="train"))
    watch = HookCallback(controllers=[idle, other], alarms=Alarm(WithoutEffect(), ["log", SwitchOff()]))
    with told("ran in stage 'train' and changed nothing"):
        fit(module_of(), data_of(), watch)
    (firing,) = watch.fired()
    assert (firing.layer, firing.hook, firing.step) == ("model.0", "idle", 2)
    assert "was not changed by the controller idle" in firing.text
    assert not idle.enabled and other.enabled


def test_evaluations_are_read_at_their_end() -> None:
    module = module_of()
    module.model[3].register_forward_hook(lambda m, a, out: out * math.nan if not m.training else None)
    watch = watching(Alarm(NonFinite(), "log"))
    trainer(watch).validate(module.eval(), loader(data_of()), verbose=False)
    (firing,) = watch.fired()
    assert (firing.layer, firing.stage, firing.batch_idx, firing.before_step) == ("model.3", "validate", 0, False)


@pytest.mark.documents("reliability/a-rule-needs-a-reading-that-no-detector-gives")
def test_the_rules_need_readings_that_are_there() -> None:
    with pytest.raises(ValueError, match="above=1 is less than below=2, so every reading would fire"):
        Threshold("rms", above=1, below=2)
    with pytest.raises(ValueError, match="needs the reading 'rsm', and no detector of this callback gives it"):
        watching(Alarm(Threshold("rsm", above=1)))
    with pytest.raises(ValueError, match=r"needs the reading 'activations_rsm/\*', .* activations_rms/\*, "):
        watching(Alarm(Threshold("activations_rsm/*", above=1)))
    with pytest.raises(ValueError, match=r"needs the reading 'drift_cosine/\*', and no detector of this callback"):
        watching(Alarm(Drift(below=0.9)))
    known = ("activations_rms/val/model.0", "*_rms/*", "a*/*", "steering_mean_ratio/*")
    assert [watching(Alarm(Threshold(one, above=1))).alarms for one in known]
    two = [ActivationStatistics("model.0", statistics=["rms"]), ActivationStatistics("model.1", statistics=["mean"])]
    both = Threshold(["activations_rms/*", "activations_mean/*"], above=1)
    assert HookCallback(two, alarms=Alarm(both)).alarms
    named = DriftDetector("block:*", name="base")
    assert HookCallback(named, alarms=Alarm(Drift("base_cosine/*", below=0.9))).alarms
    with pytest.raises(ValueError, match="Did you mean 'default'"):
        HookCallback(alarms="defaults")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give Alarm"):
        HookCallback(alarms=[NonFinite()])  # type: ignore[list-item]
    assert len(HookCallback(alarms="default").alarms) == len(default_alarms())


def test_alarms_are_copied_and_pickled_without_the_run() -> None:
    watch = watching(*default_alarms("log"))
    fit(Faulty(), data_of(), watch)
    copy = pickle.loads(pickle.dumps(watch))
    assert copy.fired() == watch.fired() != []
    assert repr(copy.alarms) == repr(watch.alarms)


# Rules alone.


def test_jumps_up_and_down_and_across_zero() -> None:
    steady = [1.0, 1.1, 0.9, 1.05, 0.95] * 3
    assert Jump("x").judge([*steady, 1.3]) is None
    assert Jump("x").judge([*steady, 9.0]) and Jump("x").judge([*steady, 0.1])
    assert Jump("x", direction="up").judge([*steady, 0.1]) is None
    assert Jump("x").judge([1.0, 9.0]) is None  # too few
    growing = [1.2**i for i in range(20)]
    assert Jump("x").judge([*growing, 1.2**20]) is None
    signed = [0.1, -0.1, 0.05, -0.05, 0.0] * 3
    assert Jump("x").judge([*signed, 0.3]) is None and Jump("x").judge([*signed, 5.0])
    assert Jump("x").judge([0.0] * 15) is None


def test_trends_need_size_and_agreement() -> None:
    rising = [1 + 0.02 * i for i in range(50)]
    assert Trend("x").judge(rising) and Trend("x", "down").judge(rising[::-1])
    assert Trend("x").judge(rising[::-1]) is None and Trend("x").judge(rising[:49]) is None
    assert Trend("x").judge([1.0] * 20 + [2.0] * 30) is None  # a jump
    assert Trend("x", factor=3).judge(rising) is None


def test_growth_and_dead_shares_and_thresholds() -> None:
    assert NormGrowth(factor=5, window=4).judge([1, 1, 2, 3, 6]) and not NormGrowth(window=4).judge([1, 1, 2, 3, 6])
    assert DeadShare().judge([0.6]) and not DeadShare().judge([0.4])
    assert DeadShare(rise=2, window=3).judge([0, 0, 0, 0.1, 0.2])
    assert not DeadShare(rise=2, window=3).judge([0, 0, 0.1, 0.1, 0.2])
    assert Threshold("x", below=1, patience=2).judge([0.5, 0.9]) and not Threshold("x", below=1, patience=2).judge(
        [0.5]
    )


def test_every_firing_says_where_and_when() -> None:
    firing = Firing("mine", "h.3", "train", 7, 14, 1, "is at 3, above 2", layers=("h.3", "h.4"), epoch=2)
    assert str(firing) == (
        "alarm mine: layer 'h.3' (and 1 more layers) is at 3, above 2, in stage 'train', step 7, micro-batch 14 of "
        "epoch 2, rank 1"
    )


def test_actions_by_name() -> None:
    names = ["log", "warn", "checkpoint", "switch off", "stop", "snapshot"]
    made = Alarm(NonFinite(), names).actions
    assert [type(one).__name__ for one in made] == [
        "LogEvent",
        "Warn",
        "SaveCheckpoint",
        "SwitchOff",
        "Stop",
        "Snapshot",
    ]
    assert isinstance(Alarm(NonFinite(), LogEvent()).actions[0], LogEvent)
    with pytest.raises(ValueError, match="Did you mean 'snapshot'"):
        Alarm(NonFinite(), "snapshots")


def test_a_snapshot_holds_what_was_before_the_pass(tmp_path: Path) -> None:
    module = Faulty("cnn", "model.3")
    norm: Any = module.model[1]
    watch = watching(Alarm(NonFinite(), [Snapshot(tmp_path), "stop"]))
    states: list[Any] = []

    class Keep(Trace):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            states.append((torch.get_rng_state(), norm.running_mean.clone(), batch))

    with told("a snapshot of the pass is in", RuntimeWarning):
        fit(module, data_of("cnn"), Keep(), watch)
    content = load_snapshot(next(tmp_path.iterdir()))
    state, mean, batch = states[NAN_AT]
    assert_bit_equal(content["random"]["torch"], state)
    assert_bit_equal(content["buffers"]["model.1.running_mean"], mean)
    assert not torch.equal(mean, norm.running_mean)
    assert_bit_equal(content["batch"], batch)
    assert content["weights"] == "before the step" and content["left_out"] == []
    assert {(layer, name) for layer, name, _ in content["readings"]} >= {("model.0", "rms")}


def test_drift_from_the_start_of_a_run_is_an_alarm() -> None:
    """A step so large that all blocks differ from the first validation's."""
    drift = DriftDetector("block:*", "start", on_error="raise")
    watch = HookCallback(drift, alarms=[Alarm(Drift(below=0.999), LogEvent()), Alarm(Drift(below=-1.0), LogEvent())])
    module, batches = Module(llama()), loader(token_data(8))
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.5)  # type: ignore[method-assign]
    runner = trainer(watch)
    runner.validate(module, batches, verbose=False)
    runner.fit(module, batches, batches)
    assert {(firing.stage, firing.reading) for firing in watch.fired()} == {("validate", "cosine")}
    assert {firing.alarm for firing in watch.fired()} == {watch.alarms[0].name}


class ByItself(pl.LightningModule):
    """Optimizes by itself, with an optimizer or without one; the layer's output is NaN in one batch."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        self.model, self.steps, self.automatic_optimization = torch.nn.Linear(2, 1), steps, False
        self.model.register_forward_hook(lambda layer, args, y: y * math.nan if args[0].amax() > 5 else y)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.model(batch).sum()
        if self.steps:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0) if self.steps else None


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer")
@pytest.mark.parametrize("steps", [True, False])
def test_a_module_that_optimizes_by_itself_is_read_in_every_batch(steps: bool) -> None:
    watch = HookCallback([ActivationStatistics("model", histogram=False)], alarms=Alarm(NonFinite(), "log"))
    noted = []

    class Peek(pl.Callback):
        def on_train_batch_end(self, *event: Any) -> None:
            assert watch._alarms._watch is not None
            noted.append(len(watch._alarms._watch._noted) + len(watch._alarms._noted))

    batches = torch.arange(8.0).view(8, 1).expand(8, 2)
    trainer(watch, Peek(), max_epochs=1).fit(ByItself(steps), torch.utils.data.DataLoader(batches))
    assert noted == [0] * 8
    (firing,) = watch.fired()
    assert (firing.layer, firing.batch_idx, firing.before_step) == ("model", 6, steps)


def test_the_loss_of_a_step_is_a_mean_also_where_an_epoch_ends_within() -> None:
    """17 micro-batches, of which 4 make a step: the last step of each epoch has one."""

    class Constant(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 0 + 4.0

    seen = []

    class Reads(Rule):
        def __init__(self) -> None:
            super().__init__("loss")

        def judge(self, values: Any) -> None:
            seen.append(values[-1])

    watch = HookCallback(ActivationStatistics("model.0", histogram=False), alarms=Alarm(Reads(), "log"))
    runner = trainer(watch, accumulate_grad_batches=4, max_epochs=2, limit_val_batches=0)
    batches = loader(vector_data(17), 1)
    runner.fit(Constant(mlp()), batches, batches)
    assert seen == [4.0] * 10


def test_a_snapshot_keeps_the_state_of_an_optimizer(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {**{name: kind() for name, kind in FIELDS.items()}, "format": FORMAT}
    content |= {
        "optimizers": [plain(optimizer.state_dict(), "optimizer", [])],
        "batch": plain({0: 1, "b": 2}, "batch", []),
    }
    save_snapshot(content, tmp_path / "a.pt")
    read = load_snapshot(tmp_path / "a.pt")
    again = torch.optim.Adam(layer.parameters())
    again.load_state_dict(read["optimizers"][0])
    assert_bit_equal(again.state_dict(), optimizer.state_dict())
    assert read["batch"] == {0: 1, "b": 2}


def test_an_alarm_of_layers_that_no_hook_is_on_warns() -> None:
    names = ("model.1", "*.1", "block:1")
    alarms = [Alarm(Threshold("rms", above=0.0, layers=one), "log", name=one) for one in names]
    watch = HookCallback([ActivationStatistics("model.1")], alarms=alarms)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer(watch).fit(Module(mlp()), loader(vector_data()), loader(vector_data()))
    (text,) = [str(one.message) for one in heard if "no hooked layer" in str(one.message)]
    assert "'block:1' is of layers=['block:1']" in text and "Hooks are on 'model.1':" in text
    assert {one.alarm for one in watch.fired()} == {"model.1", "*.1"}
