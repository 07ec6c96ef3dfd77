"""Actions where they could do harm or nothing: files that are there, controllers that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, ScaleController, Schedule
from mi_crow_lightning.alarms import (
    Alarm,
    NonFinite,
    Rule,
    SaveCheckpoint,
    Snapshot,
    SwitchOff,
    WithoutEffect,
    default_alarms,
    load_snapshot,
)
from tests.callback.runs import data_of, fit, module_of, run, told
from tests.models import trainer


class Always(Rule):
    """Fires wherever it is asked, at the loss and at a reading alike."""

    def judge(self, values: Any) -> str:
        return f"is at {values[-1]:.3g}"


def watching(*alarms: Alarm, **options: Any) -> HookCallback:
    return HookCallback(ActivationStatistics("model.*"), alarms=alarms, **options)


@pytest.mark.documents("reliability/an-alarm-fires-twice-in-one-step-or-in-a-second-run-and-saves-files")
def test_files_of_one_alarm_in_one_step_do_not_overwrite_one_another(tmp_path: Path) -> None:
    """The loss is read before the step, and the readings after it: both are of step 0."""
    alarms = [Alarm(Always(["loss", "rms"]), [SaveCheckpoint(tmp_path), Snapshot(tmp_path)])]
    with told("a snapshot of the pass is in|in the middle of a training batch", RuntimeWarning, times=2) as texts:
        fit(module_of(), data_of(), watching(*alarms), max_steps=1)
    stem = "Always-train-step0"
    names = [f"{stem}{end}" for end in ("-rank0-v1.pt", "-rank0.pt", "-v1.ckpt", ".ckpt")]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    before, after = (load_snapshot(tmp_path / f"{stem}-rank0{end}.pt") for end in ("", "-v1"))
    assert [one["weights"] for one in (before, after)] == ["before the step", "after the step"]
    assert before["alarm"]["reading"] == "loss" and after["alarm"]["reading"] == "rms"
    assert not torch.equal(before["model"]["model.0.weight"], after["model"]["model.0.weight"])
    assert all(f"{stem}-rank0{end}.pt" in text for text, end in zip(texts, ("", "-v1"), strict=True))


def test_a_second_run_does_not_overwrite_the_files_of_the_first(tmp_path: Path) -> None:
    for _ in range(3):
        fit(module_of(), data_of(), watching(Alarm(Always("loss"), SaveCheckpoint(tmp_path))), max_steps=1)
    endings = sorted(file.name.removeprefix("Always-train-step0") for file in tmp_path.iterdir())
    assert endings == ["-v1.ckpt", "-v2.ckpt", ".ckpt"]


def test_a_controller_that_changed_nothing_is_named_once_though_it_is_off_in_validation() -> None:
    idle = FunctionController("model.0", lambda x: x + 0, hook_id="idle", schedule=Schedule(stages="train"))
    watch = HookCallback(controllers=idle, alarms=Alarm(WithoutEffect(), "log", most=50))
    with told("ran in stage 'train' and changed nothing"):
        run("fit", trainer(watch, max_epochs=4), module_of(), data_of())
    assert [(one.hook, one.stage, one.step) for one in watch.fired()] == [("idle", "train", 2)]


def test_a_controller_that_is_on_now_and_then_is_counted_where_it_is_on() -> None:
    idle = FunctionController("model.0", lambda x: x + 0, hook_id="idle", schedule=Schedule(every_n_steps=2))
    watch = HookCallback(controllers=idle, alarms=Alarm(WithoutEffect(patience=2, stages="train"), "log", most=50))
    with told("ran in stage 'train' and changed nothing"):
        fit(module_of(), data_of(), watch, max_epochs=2)
    assert [(one.hook, one.step) for one in watch.fired()] == [("idle", 3)]


def test_what_stands_in_one_stage_is_not_in_order_by_another_one() -> None:
    """A validation, in which the rule is not asked, says nothing of training."""
    module = module_of()
    module.model[3].register_forward_hook(lambda layer, args, y: y * float("nan") if layer.training else None)
    watch = watching(Alarm(NonFinite(stages="train"), "log", most=50))
    run("fit", trainer(watch, max_epochs=3, check_val_every_n_epoch=1), module, data_of())
    assert [one.step for one in watch.fired()] == [0]


@pytest.mark.documents("reliability/an-alarm-switches-off-a-controller-that-is-not-there")
def test_a_controller_that_is_not_there_cannot_be_switched_off() -> None:
    one = ScaleController("model.3", 1.5, hook_id="one")
    watch = ActivationStatistics("model.*")
    for alarms in (Alarm(NonFinite(), "switch off"), default_alarms(["warn", "switch off"])):
        with pytest.raises(ValueError, match=r"'switch off'.*this callback has no controllers"):
            HookCallback(watch, alarms=alarms)
    with pytest.raises(ValueError, match=r"'NonFinite' switches off .*controllers='on' is not known"):
        HookCallback(watch, one, alarms=Alarm(NonFinite(), SwitchOff(["one", "on"])))
    assert HookCallback(watch, one, alarms=Alarm(NonFinite(), SwitchOff("one"))).alarms


def test_files_are_written_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an address, pathlib would make a folder of the working directory."""
    for kind in (SaveCheckpoint, Snapshot):
        with pytest.raises(ValueError, match=r"folder='s3://bucket/run' is an address"):
            kind("s3://bucket/run")
    monkeypatch.chdir(tmp_path)
    watch = watching(Alarm(Always("loss"), SaveCheckpoint()))
    fit(module_of(), data_of(), watch, max_steps=1, default_root_dir="memory://run")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == [
        "alarms",
        "alarms/Always-train-step0.ckpt",
    ]
    fit(module_of(), data_of(), watch, max_steps=1, default_root_dir=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "alarms" / "Always-train-step0.ckpt").is_file()
