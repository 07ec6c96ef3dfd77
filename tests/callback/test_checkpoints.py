"""Checkpoints: what they hold, and that a resumed run goes on as if nothing had happened."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, LayerActivationDetector, Schedule
from tests.callback.runs import FailingDetector, OnEvent, Seen, data_of, fit, module_of, run, told
from tests.metrics.noted import Noted
from tests.models import Module, handles, mlp, trainer, vector_data

EVERY = Schedule()
# ModelCheckpoint's, about its own folder.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")


def statistics(**options: Any) -> ActivationStatistics:
    return ActivationStatistics("model.*", schedule=EVERY, **options)


class Resumable(DataLoader[Any]):
    """Goes on after the batch at which a checkpoint was written; plain loaders begin their epoch again."""

    done = 0

    def __iter__(self) -> Any:
        first = self.done
        for i, batch in enumerate(super().__iter__()):
            if i >= first:
                self.done = (i + 1) % len(self)  # here, as nobody asks for more than the last batch
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


class Plain(Module):
    """Without dropout: random states are not what is tested here."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.model[2].p = 0.0


def long_fit(folder: Path, *callbacks: pl.Callback, ckpt_path: Path | None = None, **changes: Any) -> None:
    """Ten batches an epoch, two epochs, a reading each four steps."""
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    every = min(4, changes.get("max_steps", 4))
    options: dict[str, Any] = dict(
        max_epochs=2, log_every_n_steps=every, enable_checkpointing=True, limit_val_batches=0
    )
    runner = trainer(*callbacks, saver, **{**options, **changes})
    runner.fit(Plain(), Resumable(vector_data(40), batch_size=4), [vector_data(4)], ckpt_path=ckpt_path)


def files(folder: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("step=")): path for path in folder.glob("step=*.ckpt")}


def crash_at(batch: int) -> pl.Callback:
    def crash(trainer: Any, module: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx == batch:
            raise ArithmeticError("power cut")

    return OnEvent("on_train_batch_start", crash)


@pytest.mark.documents("reliability/a-run-crashes-and-is-resumed-from-a-checkpoint")
@pytest.mark.parametrize(("accumulate", "crash"), [(1, 2), (1, 6), (1, 8), (2, 5), (2, 7)])
def test_a_resumed_run_reads_what_an_uninterrupted_one_does(tmp_path: Path, accumulate: int, crash: int) -> None:
    changes = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 4 // accumulate}
    whole = HookCallback(statistics())
    long_fit(tmp_path / "whole", whole, **changes)
    assert len({row.step for row in whole.history()}) == 5
    broken = HookCallback(statistics())
    with pytest.raises(ArithmeticError, match="power cut"):
        long_fit(tmp_path / "broken", broken, crash_at(crash), **changes)
    saved = files(tmp_path / "broken")
    resumed = HookCallback(statistics())
    long_fit(tmp_path / "resumed", resumed, ckpt_path=saved[max(saved)], **changes)
    # The last checkpoint may be older than the last reading: from its step on all is read again.
    joined = {(row.step, row.tag): row.value for row in (*broken.history(), *resumed.history())}
    assert joined == {(row.step, row.tag): row.value for row in whole.history()}
    assert {row.step for row in resumed.history()} <= {row.step for row in whole.history()}


def bad_at(batch: int) -> pl.Callback:
    """Runs the model on infinities in a batch of the first epoch; listed behind ours, whose hooks see it."""

    def overflow(trainer: Any, module: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx == batch:
            with torch.no_grad():
                module.model(torch.full((3, 8), float("inf")))

    return OnEvent("on_train_batch_start", overflow)


@pytest.mark.documents("reliability/activations-hold-nan-or-infinity-before-the-edit")
@pytest.mark.parametrize("bad", [4, 5, 6, 7])
def test_channels_histograms_and_the_first_bad_batch_survive_a_crash(tmp_path: Path, bad: int) -> None:
    def noted(folder: str, *callbacks: pl.Callback, **options: Any) -> list[str]:
        detector = Noted("model.*", schedule=EVERY, per_channel=True, dead_threshold=0.5)
        try:
            long_fit(tmp_path / folder, HookCallback(detector), bad_at(bad), *callbacks, **options)
        except ArithmeticError:
            assert callbacks
        return [repr(readings) for readings in detector.noted]  # exact, and nan is nan

    whole, broken = noted("whole"), noted("broken", crash_at(6))
    saved = files(tmp_path / "broken")
    resumed = noted("resumed", ckpt_path=saved[max(saved)])
    assert (len(whole), len(broken), max(saved)) == (5, 1, 6)
    assert [f"'nonfinite_batch', value={bad}.0" in text for text in whole] == [False, True, False, False, False]
    assert broken + resumed == whole


def test_one_callback_resumes_its_own_run(tmp_path: Path) -> None:
    whole, watch = HookCallback(statistics()), HookCallback(statistics())
    long_fit(tmp_path / "whole", whole)
    with pytest.raises(ArithmeticError, match="power cut"):
        long_fit(tmp_path / "broken", watch, crash_at(6))
    long_fit(tmp_path / "resumed", watch, ckpt_path=files(tmp_path / "broken")[6])
    assert [row.run for row in watch.history()][:: len(watch.history()) - 1] == ["fit", "fit 2"]
    assert [row._replace(run="fit") for row in watch.history()] == whole.history()


def test_a_state_may_be_loaded_before_and_after_the_start(tmp_path: Path) -> None:
    long_fit(tmp_path, HookCallback(statistics()), max_steps=6)
    state = next(iter(_states(files(tmp_path)[6]).values()))
    expected = HookCallback(statistics())
    long_fit(tmp_path / "resumed", expected, ckpt_path=files(tmp_path)[6], max_steps=8)
    rows = [row.value for row in expected.history() if row.step == 7]

    early, late = HookCallback(statistics()), HookCallback(statistics())
    early.load_state_dict(state)
    load = OnEvent("on_train_start", lambda *event: late.load_state_dict(state))
    counts = [_first_counts(early), _first_counts(late, load), _first_counts(HookCallback(statistics()))]
    assert rows and counts == [8 * 4 * 32 - 6 * 4 * 32 + 2 * 4 * 32, 4 * 4 * 32, 2 * 4 * 32]


def _first_counts(watch: HookCallback, *callbacks: pl.Callback) -> float:
    """How many numbers of the first layer were seen, after a fit of two batches without a reading."""
    fit(Plain(), vector_data(8), watch, *callbacks, log_every_n_steps=0)
    rows = watch.state_dict()["hooks"]["0:ActivationStatistics"]["rows"]["train"]
    return rows[0, 0].item()


def _states(path: Path) -> dict[str, Any]:
    saved = torch.load(path, weights_only=True)
    return {key: state for key, state in saved["callbacks"].items() if key.startswith("HookCallback")}


def test_a_checkpoint_holds_tensors_numbers_and_strings_only(tmp_path: Path) -> None:
    watch = HookCallback(
        [statistics(hook_id="mine"), LayerActivationDetector("model.0", name="held"), Seen()],
        [FunctionController("model.0", lambda x: x * 1)],
    )
    long_fit(tmp_path, watch, max_steps=2)
    (state,) = _states(files(tmp_path)[2]).values()  # torch.load(weights_only=True) opened it
    assert list(state["hooks"]) == ["mine", "1:LayerActivationDetector", "2:Seen", "3:FunctionController"]
    assert _kinds(state) <= {Tensor, int, float, bool, str}


def _kinds(value: Any) -> set[type]:
    if isinstance(value, dict):
        return set().union(*(_kinds(v) for item in value.items() for v in item), set())
    if type(value) is list:
        return set().union(*map(_kinds, value), set())
    return {type(value)}


def test_a_changed_set_of_hooks_is_told_by_name() -> None:
    old = HookCallback([Seen(hook_id="old"), Seen(hook_id="both")])
    old.detectors[1].disable()
    new = HookCallback([Seen(hook_id="both"), Seen(hook_id="new")])
    with told(r"hooks only in the checkpoint: \['old'\]; hooks without a state in it: \['new'\]"):
        new.load_state_dict(old.state_dict())
    assert [hook.enabled for hook in new.detectors] == [False, True]


@pytest.mark.documents(
    "compatibility/a-checkpoint-of-another-version-or-of-other-layers/detectors",
    "compatibility/a-checkpoint-of-another-version-or-of-other-layers/controllers",
)
def test_other_layers_and_other_versions_are_refused(tmp_path: Path) -> None:
    for callback in (HookCallback(Seen()), HookCallback(controllers=FunctionController("model.0", abs))):
        with pytest.raises(ValueError, match="state has version 7, and this release reads version 1"):
            callback.load_state_dict({"version": 7, "hooks": {}})
    watch = HookCallback(ActivationStatistics("model.0", schedule=EVERY, hook_id="mine"), name="watch")
    long_fit(tmp_path, watch, max_steps=2)
    other = HookCallback(ActivationStatistics("model.3", schedule=EVERY, hook_id="mine"), name="watch")
    with pytest.raises(ValueError, match=r"statistics are of the layers \['model.0'\].*watches \['model.3'\]"):
        long_fit(tmp_path / "other", other, ckpt_path=files(tmp_path)[2])
    assert not other.detectors[0].registered


def test_switches_come_back(tmp_path: Path) -> None:
    watch = HookCallback([statistics(), Seen(hook_id="off", schedule=EVERY)])
    watch.detectors[1].disable()
    long_fit(tmp_path, watch, max_steps=2)
    again = HookCallback([statistics(), Seen(hook_id="off", schedule=EVERY)])
    long_fit(tmp_path / "again", again, ckpt_path=files(tmp_path)[2], max_steps=4)
    assert not again.detectors[1].enabled and again.detectors[1].calls == []


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_copies_before_during_and_after_a_run(way: Any) -> None:
    watch, copies = HookCallback([statistics(), Seen(schedule=EVERY)]), []
    copies.append(way(watch))
    during = OnEvent("on_train_batch_start", lambda trainer, module, index: copies.append(way((watch, module.model))))
    module = module_of()
    fit(module, data_of()[:4], watch, during)
    copies.append(way(watch))
    (running, model), calls = copies[1], len(watch.detectors[1].calls)
    model(torch.zeros(1, 8))  # the copied model calls no hook of ours
    assert len(watch.detectors[1].calls) == calls and running.detectors[1].calls == []
    for one in (copies[0], running, copies[2]):
        assert not any(hook.registered or hook.context for hook in one.detectors)
        one.detectors[1].calls.clear()
        fit(module, data_of(), one)
        assert len(one.detectors[1].calls) == 5 and not handles(module)


def test_state_keys() -> None:
    named = HookCallback(Seen("block:1"), name="mine")
    assert named.state_key == "HookCallback[mine]"
    first, second = HookCallback(Seen("model.2")), HookCallback(Seen("model.2"))
    assert first.state_key != second.state_key
    with pytest.raises(RuntimeError, match=r"`callback.state_key` must be unique"):
        trainer(HookCallback(Seen(), name="a"), HookCallback(Seen(), name="a"))


def test_what_else_is_alive_does_not_decide_where_a_state_is_found(tmp_path: Path) -> None:
    def pair() -> list[HookCallback]:
        return [HookCallback(Seen(), name=None), HookCallback(Seen(hook_id="second"))]

    before, saved = pair(), pair()
    saved[1].detectors[0].disable()
    long_fit(tmp_path, *saved, max_steps=2)
    assert list(_states(files(tmp_path)[2])) == ["HookCallback[Seen('model.0')]", "HookCallback[Seen('model.0')]#2"]
    resumed = pair()
    long_fit(tmp_path / "resumed", *resumed, ckpt_path=files(tmp_path)[2], max_steps=4)
    assert [watch.detectors[0].enabled for watch in (*before, *resumed)] == [True, True, True, False]


def test_saving_after_the_run(tmp_path: Path) -> None:
    watch = HookCallback(statistics())
    runner = fit(module_of(), data_of(), watch, log_every_n_steps=3)
    runner.save_checkpoint(tmp_path / "end.ckpt")
    (state,) = _states(tmp_path / "end.ckpt").values()
    # Steps 3 and 4 came after the last reading.
    assert state["hooks"]["0:ActivationStatistics"]["rows"]["train"][0, 0] == 2 * 4 * 32
    run("validate", trainer(watch), module_of(), data_of())


def test_a_detector_that_failed_is_on_again_in_the_next_run() -> None:
    failing = FailingDetector(at=1, hook_id="failing")
    watch = HookCallback(detectors=failing)
    with told("the detector broke", RuntimeWarning):
        fit(module_of(), data_of(), watch)
    assert not failing.enabled
    state = watch.state_dict()
    again = FailingDetector(at=99, hook_id="failing")
    resumed = HookCallback(detectors=again)
    resumed.load_state_dict(state)
    fit(module_of(), data_of(), resumed)
    assert again.enabled and again.calls == 5
    again.disable()  # the user's own switch is kept
    kept = HookCallback(detectors=FailingDetector(hook_id="failing"))
    kept.load_state_dict(resumed.state_dict())
    assert not kept.detectors[0].enabled
