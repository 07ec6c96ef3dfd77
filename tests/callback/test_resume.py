"""A run that crashed and is resumed from its checkpoint equals the run that did not: numbers, edits, weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.hooks.effects import joined_effects
from mi_crow_lightning.metrics.changes import Change
from tests.callback.runs import OnEvent, Seen, assert_bit_equal, told
from tests.callback.test_checkpoints import Plain, Resumable, crash_at, files
from tests.metrics.noted import Noted
from tests.models import WIDTH, handles, trainer, vector_data

EVERY, TRAIN = Schedule(), Schedule(stages="train")
V = torch.linspace(-1, 1, WIDTH)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    # Of its absence.
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create:UserWarning"),
    pytest.mark.filterwarnings("ignore:`weights_only` was not set:UserWarning"),
]


class LoadsLate(SingleDeviceStrategy):
    """Loads checkpoints as sharded strategies do: when the model is set up, after ``on_fit_start``."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def long_fit(*callbacks: pl.Callback, late: bool = False, ckpt_path: Path | None = None, **changes: Any) -> Plain:
    """Ten batches an epoch, two epochs, a reading each four steps; a validation of two batches an epoch."""
    options: dict[str, Any] = dict(max_epochs=2, log_every_n_steps=4, num_sanity_val_steps=0)
    if late:
        options |= {"strategy": LoadsLate(device=torch.device("cpu")), "accelerator": "auto", "devices": "auto"}
    module = Plain()
    keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
    runner = trainer(*callbacks, **{**options, "enable_checkpointing": keeps, **changes})
    validation = DataLoader(vector_data(8), batch_size=4)
    runner.fit(module, Resumable(vector_data(40), batch_size=4), validation, ckpt_path=ckpt_path)
    return module


def saver(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def last(folder: Path) -> Path:
    saved = files(folder)
    return saved[max(saved)]


def rows_of(*watches: HookCallback) -> dict[tuple[str, int, str], float]:
    return {(row.stage, row.step, row.tag): row.value for watch in watches for row in watch.history()}


def crash_and_resume(
    folder: Path, make: Callable[[], list[HookCallback | pl.Callback]], at: int = 6, late: bool = False, **changes: Any
) -> tuple[list[Any], list[Any], list[Any]]:
    """The callbacks of a whole run, of one that crashed, and of its resumption; weights are compared here."""
    whole, broken, resumed = make(), make(), make()
    expected = long_fit(*whole, saver(folder / "whole"), late=late, **changes)
    with pytest.raises(ArithmeticError, match="power cut"):
        long_fit(*broken, crash_at(at), saver(folder / "broken"), late=late, **changes)
    module = long_fit(*resumed, saver(folder / "more"), late=late, ckpt_path=last(folder / "broken"), **changes)
    assert_bit_equal(module.state_dict(), expected.state_dict())
    assert not handles(module)
    return whole, broken, resumed


def noted(detector: Noted) -> list[str]:
    return [repr(readings) for readings in detector.noted]


def watching() -> list[HookCallback | pl.Callback]:
    detectors = [
        Noted("model.*", schedule=EVERY, per_channel=True, dead_threshold=0.5),
        ProjectionDetector("model.3", vectors={"a": V, "b": V.flip(0)}, schedule=EVERY),
        # Nothing of it is due between the crash and the next reading.
        ActivationStatistics("model.0", name="early", schedule=Schedule(stages="train", batches=[4, 5])),
        ProjectionDetector("model.3", V, name="early_projection", schedule=Schedule(stages="train", batches=[4, 5])),
        Seen("model.3", schedule=TRAIN & Schedule(every_n_steps=3, start_step=2, stop_step=17)),
    ]
    return [HookCallback(detectors)]


@pytest.mark.documents(
    "compatibility/crash-and-resume-in-the-middle-of-an-epoch/detectors",
    "compatibility/crash-and-resume-in-the-middle-of-an-epoch/logging",
)
@pytest.mark.parametrize(("at", "accumulate"), [(2, 1), (6, 1), (9, 1), (6, 2)])
@pytest.mark.parametrize("late", [False, True])
def test_readings_at_equal_steps(tmp_path: Path, at: int, accumulate: int, late: bool) -> None:
    changes = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 4 // accumulate}
    (whole,), (broken,), (resumed,) = crash_and_resume(tmp_path, watching, at, late, **changes)
    assert rows_of(broken, resumed) == rows_of(whole)
    assert not any(detector.resumed for detector in resumed.detectors)
    counts = {tag for stage, _, tag in rows_of(whole) if stage == "train"}
    assert len([tag for tag in counts if tag.startswith("early")]) == 14 + 5 + 1 - 1 - 1  # no nonfinite_batch, ...
    first, second, joined = (one.detectors[0] for one in (broken, resumed, whole))
    assert noted(first) + noted(second) == noted(joined)
    first, second, joined = (one.detectors[4] for one in (broken, resumed, whole))
    assert first.calls + second.calls == joined.calls and len(joined.calls) > 4 // accumulate


def steering() -> list[HookCallback | pl.Callback]:
    """Strengths, vectors and switches change between batches, before the crash and after it."""
    numbers = SteeringController("model.0", V, 0.1, hook_id="number", schedule=TRAIN)
    vectors = SteeringController("model.3", {"model.3": V}, 0.05, hook_id="vector", schedule=TRAIN)
    warm_up = SteeringController("model.3", V, lambda ctx: 0.01 * ctx.step, hook_id="warm", schedule=TRAIN)
    switched = SteeringController("model.0", V, 0.2, hook_id="switched", schedule=TRAIN)
    watch = HookCallback(ActivationStatistics("model.*", schedule=EVERY), [numbers, vectors, warm_up, switched])

    def change(trainer: Any, module: Any, batch_idx: int) -> None:
        now = (trainer.current_epoch, batch_idx)
        if now == (0, 3):
            numbers.strength, vectors.vector = 0.3, {"model.3": V.flip(0)}
            switched.disable()
        if now == (0, 4):
            vectors.strength = torch.tensor([0.1, 0.2, 0.3, 0.4])
        if now == (1, 2):
            numbers.strength = {"model.0": -0.2}
            switched.enable()

    return [watch, OnEvent("on_train_batch_start", change)]


@pytest.mark.documents("compatibility/crash-and-resume-in-the-middle-of-an-epoch/controllers")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", [2, 6])
def test_edits_and_what_they_changed(tmp_path: Path, at: int, late: bool) -> None:
    whole, broken, resumed = (made[0] for made in crash_and_resume(tmp_path, steering, at, late))
    assert rows_of(broken, resumed) == rows_of(whole)
    assert resumed.effects() == whole.effects()
    fired = {effect.hook: effect.fired for effect in whole.effects()}
    assert fired == {"number": 20, "vector": 20, "warm": 19, "switched": 11}  # the warm-up begins at 0
    for mine, theirs in zip(resumed.controllers, whole.controllers, strict=True):
        assert mine.enabled == theirs.enabled and mine.id == theirs.id
    assert resumed.controllers[0].strength == {"model.0": -0.2}
    assert torch.equal(resumed.controllers[1].vector["model.3"], V.flip(0))


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(tmp_path: Path) -> None:
    whole, short, longer = steering(), steering(), steering()
    expected = long_fit(*whole, max_steps=12)
    long_fit(*short, saver(tmp_path), max_steps=6)
    module = long_fit(*longer, ckpt_path=last(tmp_path), max_steps=12)
    assert_bit_equal(module.state_dict(), expected.state_dict())
    assert rows_of(short[0], longer[0]) == rows_of(whole[0])
    assert longer[0].effects() == whole[0].effects()
    fired = {effect.hook: effect.fired for effect in short[0].effects()}
    assert fired == {"number": 6, "vector": 6, "warm": 5, "switched": 3}
    # Steps 4 and 5 are counted in effects(), and still to be read if the run goes on.
    assert short[0].state_dict()["effects"]["number"]["rows"]["train"][0, Change.FIRED] == 2


class CrashesInValidation(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.trainer.global_step == 5 and batch_idx == 2:
            raise ArithmeticError("power cut")


@pytest.mark.parametrize("where", ["in a step", "before a step"])
def test_a_validation_that_was_cut_short_is_read_by_itself(tmp_path: Path, where: str) -> None:
    """Lightning runs what is left of it, or nothing, and begins its own metrics anew."""

    def fit(watch: HookCallback, module: Plain, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> None:
        options: dict[str, Any] = dict(max_epochs=1, val_check_interval=5, num_sanity_val_steps=0)
        runner = trainer(watch, *callbacks, log_every_n_steps=4, **options)
        validation = DataLoader(vector_data(16), batch_size=4)
        runner.fit(module, Resumable(vector_data(40), batch_size=4), validation, ckpt_path=ckpt_path)

    def make() -> HookCallback:
        controller = FunctionController("model.0", lambda x: x * 2, hook_id="edit", schedule=EVERY)
        detectors = [Noted("model.0", schedule=EVERY), ProjectionDetector("model.3", V, schedule=EVERY), Seen()]
        return HookCallback(detectors, controller)

    def crash(trainer: Any, module: Any, batch_idx: int) -> None:
        if trainer.global_step == 5 and batch_idx == 2:
            raise ArithmeticError("power cut")

    whole, broken, resumed = make(), make(), make()
    fit(whole, Plain())
    save = OnEvent("on_exception", lambda trainer, *event: trainer.save_checkpoint(tmp_path / "cut.ckpt"))
    crashes = [OnEvent("on_validation_batch_start", crash)] if where == "before a step" else []
    with pytest.raises(ArithmeticError, match="power cut"):
        fit(broken, CrashesInValidation() if where == "in a step" else Plain(), *crashes, save)
    fit(resumed, Plain(), ckpt_path=tmp_path / "cut.ckpt")
    expected, found = rows_of(whole), rows_of(broken, resumed)
    same = {key: value for key, value in expected.items() if key[:2] != ("validate", 4)}
    assert {key: found.get(key) for key in same} == same and len(same) < len(expected)
    # The reading of the one that was cut is of the batches that Lightning still ran, if it did.
    left = len([call for call in resumed.detectors[2].calls if call[0] == "validate"]) - 4
    assert left == (2 if where == "in a step" else 0)
    fired = [row.value for row in resumed.history() if row.tag.startswith("steering_fired/val")]
    assert fired == [left, 4][left == 0 :]
    numbers = [sum(r.value.counts) for read in resumed.detectors[0].noted for r in read if r.name == "histogram"]
    assert [number / (4 * WIDTH) for number in numbers if number != 4 * 4 * WIDTH][:1] == [left][: left > 0]


def test_a_checkpoint_written_before_the_run_begins_has_what_was_loaded(tmp_path: Path) -> None:
    watch, change = steering()
    watch.detectors.append(ProjectionDetector("model.3", V, schedule=EVERY, hook_id="along"))
    long_fit(watch, change, saver(tmp_path), max_steps=6)
    state = torch.load(last(tmp_path), weights_only=True)["callbacks"][watch.state_key]
    state["hooks"]["switched"]["enabled"] = not state["hooks"]["switched"]["enabled"]
    again = steering()[0]
    again.detectors.append(ProjectionDetector("model.3", V, schedule=EVERY, hook_id="along"))
    again.load_state_dict(state)
    assert_bit_equal(again.state_dict(), state)
    assert state["effects"]["number"]["rows"]["train"][0, 0] == 8 and state["hooks"]["along"]["rows"]["train"].any()


@pytest.mark.documents(
    "compatibility/validate-test-or-predict-with-ckpt-path/detectors",
    "compatibility/validate-test-or-predict-with-ckpt-path/controllers",
    "compatibility/validate-test-or-predict-with-ckpt-path/logging",
)
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_of_a_checkpoint_steers_as_the_script_says(tmp_path: Path, stage: str) -> None:
    def make(strength: float, vector: torch.Tensor) -> HookCallback:
        controller = SteeringController("model.0", vector, strength, hook_id="steer", schedule=EVERY)
        return HookCallback([ActivationStatistics("model.0", schedule=EVERY)], [controller], name="watch")

    trained = make(0.1, V)
    long_fit(trained, saver(tmp_path), max_steps=6)
    watch, straight = make(3.0, V.flip(0)), make(3.0, V.flip(0))
    watch.detectors[0].disable()
    watch.detectors[0].enable()
    module, data = Plain(), DataLoader(vector_data(8), batch_size=4)
    run = {"validate": pl.Trainer.validate, "test": pl.Trainer.test, "predict": pl.Trainer.predict}[stage]
    quiet: dict[str, Any] = {} if stage == "predict" else {"verbose": False}
    run(trainer(watch), module, data, ckpt_path=last(tmp_path), weights_only=True, **quiet)
    run(trainer(straight), module, data, **quiet)  # the weights are loaded now
    assert watch.controllers[0].strength == 3.0 and torch.equal(watch.controllers[0].vector, V.flip(0))
    assert rows_of(watch) == rows_of(straight) and watch.effects() == straight.effects()
    # A fit takes over all.
    long_fit(watch, ckpt_path=last(tmp_path), max_steps=8)
    assert watch.controllers[0].strength == 0.1 and torch.equal(watch.controllers[0].vector, V)


@pytest.mark.documents("compatibility/other-hooks-on-resume/detectors")
def test_what_resumes_when_the_hooks_have_changed(tmp_path: Path) -> None:
    old = HookCallback(
        [Seen(hook_id="gone"), ActivationStatistics("model.0", schedule=EVERY, hook_id="kept")], name="w"
    )
    long_fit(old, saver(tmp_path), max_steps=6, limit_val_batches=0)
    new = HookCallback(
        [ActivationStatistics("model.0", schedule=EVERY, hook_id="kept"), LayerActivationDetector("model.3")], name="w"
    )
    with told(r"hooks only in the checkpoint: \['gone'\]; .*without a state in it: \['1:LayerActivationDetector'\]"):
        long_fit(new, ckpt_path=last(tmp_path), max_steps=8, limit_val_batches=0)
    whole = HookCallback(ActivationStatistics("model.0", schedule=EVERY))
    long_fit(whole, max_steps=8, limit_val_batches=0)
    tags = {key: value for key, value in rows_of(whole).items() if key[1] == 7}
    assert tags and {key: rows_of(new)[key] for key in tags} == tags


def test_without_a_name_other_hooks_are_another_callback(tmp_path: Path) -> None:
    long_fit(HookCallback(Seen("model.0")), saver(tmp_path), max_steps=6)
    with told(r"callbacks used to create the checkpoint need to be provided.*HookCallback\[Seen\('model.0'\)\]"):
        long_fit(HookCallback(Seen("model.3")), ckpt_path=last(tmp_path), max_steps=8)


@pytest.mark.documents(
    "compatibility/torch-load-weights-only-true/detectors", "compatibility/torch-load-weights-only-true/controllers"
)
def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    watch, change = steering()
    long_fit(watch, change, saver(tmp_path), max_steps=6)
    again = steering()
    validation = DataLoader(vector_data(8), batch_size=4)
    runner = trainer(*again, max_steps=8, num_sanity_val_steps=0)
    data = Resumable(vector_data(40), batch_size=4)
    runner.fit(Plain(), data, validation, ckpt_path=last(tmp_path), weights_only=True)
    assert {effect.hook: effect.fired for effect in again[0].effects()}["number"] == 8


@pytest.mark.documents("compatibility/other-hooks-on-resume/controllers")
def test_what_was_changed_at_layers_that_are_no_longer_edited_is_left_behind(tmp_path: Path) -> None:
    def make(layers: str) -> HookCallback:
        return HookCallback(
            controllers=SteeringController(layers, V, 0.1, hook_id="steer", schedule=TRAIN), name="watch"
        )

    long_fit(make("model.[03]"), saver(tmp_path), max_steps=6)
    again = make("model.3")
    long_fit(again, ckpt_path=last(tmp_path), max_steps=8)
    assert [(effect.layer, effect.fired) for effect in again.effects()] == [("model.3", 8)]


def test_on_another_number_of_ranks_the_first_goes_on_from_the_sum() -> None:
    def state(tokens: float, largest: float) -> dict[str, Any]:
        row = torch.tensor([[tokens, tokens, tokens / 2, largest, 1.0]], dtype=torch.float64)
        return {"layers": ["a"], "rows": {"train": row}, "totals": {"train": 10 * row}}

    states = [state(2, 0.5), state(6, 0.7)]
    first, second = joined_effects(states, 0), joined_effects(states, 1)
    assert first["rows"]["train"].tolist() == [[8, 8, 4, 0.7, 2]] and second["rows"] == {}
    assert_bit_equal(first["totals"], states[0]["totals"])  # which all ranks have
