"""What happens in a run stands in its event file, at its step."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from mi_crow_lightning import (
    ActivationStatistics,
    Detector,
    FunctionController,
    HookCallback,
    Schedule,
    SteeringController,
    _warned,
)
from mi_crow_lightning.hooks.schedules import LoggedSteps, Moment, Stage, When
from mi_crow_lightning.loggers import EventRow, read_compact, read_events
from mi_crow_lightning.runs.hook_switches import phase_of
from mi_crow_lightning.runs.run_events import MOST
from tests.callback.runs import (
    FailingDetector,
    OnEvent,
    assert_bit_equal,
    data_of,
    fingerprint,
    fit,
    module_of,
    run,
    told,
)
from tests.models import trainer

ON_START = "on_train_batch_start"
STEPS = 5  # of a fit


class Noting(Detector):
    """Reports the step of each batch, and one event of each reading."""

    def __init__(self, layer_signature: str = "model.0", text: str = "seen", **options: Any) -> None:
        super().__init__(layer_signature, **options)
        self.text = text

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.report_event(f"{self.text} {ctx.moment.batch_idx}")


class Every(When):
    """Another one's schedule: it counts how often it is asked."""

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0

    def due(self, moment: Moment) -> bool:
        self.asked += 1
        return moment.stage is Stage.TRAIN and moment.step // self.n % 2 == 1


def logger_in(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(str(folder), name=None, version="run")


def rows_of(folder: Path, *kinds: str) -> list[EventRow]:
    found = list(read_events(folder / "run"))
    return [row for row in found if not kinds or row.kind in kinds]


def plus_one(schedule: When | None = None, **options: Any) -> FunctionController:
    return FunctionController("model.0", lambda x: x + 1, schedule=schedule, **options)


def marks(folder: Path, *callbacks: pl.Callback, kinds: tuple[str, ...] = ("switch",), **changes: Any) -> list[tuple]:
    """Step, hook and text of the events of a fit of five steps."""
    fit(module_of(), data_of(), *callbacks, logger=logger_in(folder), **changes)
    return [(row.step, row.hook, row.text) for row in rows_of(folder, *kinds)]


def test_a_schedule_is_marked_where_it_begins_and_ends(tmp_path: Path) -> None:
    schedule = Schedule(stages="train", start_step=2, stop_step=4)
    found = marks(tmp_path, HookCallback(controllers=plus_one(schedule)))
    words = "by its schedule: train, from step 2, before step 4"
    assert found == [(2, "FunctionController", f"on, {words}"), (4, "FunctionController", f"off, {words}")]


def test_the_rhythm_of_a_schedule_is_not_marked(tmp_path: Path) -> None:
    detectors = [
        ActivationStatistics("model.0", name="logged"),
        ActivationStatistics("model.0", name="rhythm", schedule=Schedule(stages="train", every_n_steps=2)),
        ActivationStatistics("model.0", name="batches", schedule=LoggedSteps() | Schedule(batches=[1, 3])),
        ActivationStatistics("model.0", name="late", schedule=LoggedSteps() & Schedule(epochs=[1])),
    ]
    found = marks(tmp_path, HookCallback(detectors), log_every_n_steps=2, max_epochs=2, kinds=())
    (late,) = found
    assert late[:2] == (STEPS, "late") and late[2].startswith("on, by its schedule: logged steps of train")


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        (Schedule(stages="train"), [True] * 4),
        (Schedule(start_step=1, stop_step=3), [False, True, True, False]),
        (Schedule(start_step=2, every_n_steps=3), [False, False, None, None]),
        (~Schedule(every_n_batches=2), [None] * 4),
        (~Schedule(start_step=2), [True, True, False, False]),
        (Schedule(start_step=2) | Schedule(every_n_steps=2), [None, None, True, True]),
        (Schedule(start_step=2) & Every(1), [False, False, None, None]),
        (Every(1), [None] * 4),
        (Schedule(stages="predict"), [False] * 4),
    ],
)
def test_phases(schedule: When, phases: list[bool | None]) -> None:
    moments = [Moment(Stage.TRAIN, step=step, batch_idx=step) for step in range(4)]
    assert [phase_of(schedule, moment) for moment in moments] == phases
    for moment, phase in zip(moments, phases, strict=True):
        assert phase is None or schedule.due(moment) is phase


def test_another_ones_schedule_is_asked_once_a_batch_and_marked_at_most_twenty_times(tmp_path: Path) -> None:
    schedules = [Every(2), Every(1)]
    hooks = [plus_one(schedule, hook_id=f"every {schedule.n}") for schedule in schedules]
    found = marks(tmp_path, HookCallback(controllers=hooks), max_epochs=6)
    steps = 6 * STEPS
    assert [schedule.asked for schedule in schedules] == [steps, steps]
    of_two = [(step, text[:3].strip(", ")) for step, hook, text in found if hook == "every 2"]
    assert of_two[:3] == [(2, "on"), (4, "off"), (6, "on")]
    of_one = [(step, text) for step, hook, text in found if hook == "every 1"]
    assert [step for step, _ in of_one] == list(range(1, 21))
    assert of_one[-1][1].endswith("it changes often: later changes are not marked")


def test_switches_by_hand_are_marked_once(tmp_path: Path) -> None:
    hook = plus_one(Every(100) | Schedule(stages="train"), hook_id="mine")

    def switch(_: Any, __: Any, batch: int) -> None:
        if batch in (1, 3):
            (hook.disable if batch == 1 else hook.enable)()

    found = marks(tmp_path, OnEvent(ON_START, switch), HookCallback(controllers=hook))
    assert found == [(1, "mine", "off, by disable()"), (3, "mine", "on, by enable()")]


def test_a_hook_that_is_enabled_after_its_schedule_began_is_marked_once(tmp_path: Path) -> None:
    hook = plus_one(Schedule(stages="train", start_step=2), hook_id="mine")

    def switch(_: Any, __: Any, batch: int) -> None:
        if batch in (1, 3):
            (hook.disable if batch == 1 else hook.enable)()

    found = marks(tmp_path, OnEvent(ON_START, switch), HookCallback(controllers=hook))
    assert found == [(1, "mine", "off, by disable()"), (3, "mine", "on, by enable()")]


@pytest.mark.filterwarnings("ignore:.*failed at layer:RuntimeWarning")
def test_a_hook_that_fails_is_marked_with_its_warning(tmp_path: Path) -> None:
    detector = FailingDetector(at=3, schedule=Schedule(stages="train"), name="broken")
    fit(module_of(), data_of(), HookCallback(detector), logger=logger_in(tmp_path))
    warned, off = rows_of(tmp_path)
    assert (warned.step, warned.kind) == (2, "warning") and "the detector broke" in warned.text
    assert off[1:5] == (3, "switch", "off, because it failed", "broken")


def test_another_strength_is_marked(tmp_path: Path) -> None:
    steering = SteeringController("model.0", torch.ones(8), 0.5, schedule=Schedule(stages="train"), hook_id="up")

    def stronger(_: Any, __: Any, batch: int) -> None:
        steering.strength = 0.5 if batch < 2 else 2.0

    width = module_of().model[0].out_features
    steering.vector = torch.ones(width)
    found = marks(tmp_path, OnEvent(ON_START, stronger), HookCallback(controllers=steering), kinds=())
    assert found == [(2, "up", "strength 0.5 -> 2")]


def test_a_detector_reports_events_at_its_layer_and_from_its_readings(tmp_path: Path) -> None:
    class Reading(Noting):
        def readings(self) -> Any:
            self.report_event("read", "all layers")
            return ()

    detector = Reading(schedule=Schedule(stages="train"), name="alarm")
    fit(module_of(), data_of(), HookCallback(detector), logger=logger_in(tmp_path), log_every_n_steps=2)
    found = [(row.step, row.text, row.hook, row.layer) for row in rows_of(tmp_path)]
    expected = []
    for step in range(STEPS):
        expected.append((step, f"seen {step}", "alarm", "model.0"))
        expected += [(step, "read", "alarm", "all layers")] * (step % 2)
    assert found == expected


def test_a_report_must_be_a_text() -> None:
    with pytest.raises(TypeError, match=r"report_event: text=3 must be a string"):
        Noting().report_event(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"report_event: layer=3 must be a string"):
        Noting().report_event("x", 3)  # type: ignore[arg-type]
    Noting().report_event("nobody hears it")


def test_events_of_a_logged_step_are_in_the_record_of_its_readings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    callback = HookCallback([ActivationStatistics("model.0"), Noting(schedule=Schedule(stages="train"))])
    fit(module_of(), data_of(), callback, logger=logger_in(tmp_path), log_every_n_steps=2)
    (file,) = (tmp_path / "run").glob("events*")
    records = [
        (event.step, [value.tag for value in event.summary.value]) for event in EventFileLoader(str(file)).Load()
    ]
    with_events = [(step, len(tags) > 1) for step, tags in records if any(tag.startswith("events/") for tag in tags)]
    assert with_events == [(step, step % 2 == 1) for step in range(STEPS)]
    assert len(list(read_compact(tmp_path / "run"))) == len(callback.history())


def test_events_are_written_when_their_batch_is_over(tmp_path: Path) -> None:
    logger, seen = logger_in(tmp_path), []

    def reading(*_: Any) -> None:
        logger.experiment.flush()
        seen.append([row.step for row in rows_of(tmp_path)])

    callback = HookCallback(Noting(schedule=Schedule(stages="train")))
    callbacks = (callback, OnEvent("on_train_batch_end", reading))
    fit(module_of(), data_of(), *callbacks, logger=logger, log_every_n_steps=2)
    assert seen == [list(range(step + 1)) for step in range(STEPS)]


def test_the_last_record_of_a_step_holds_all_its_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    callback = HookCallback(Noting(schedule=Schedule(stages="train")))
    fit(module_of(), data_of(), callback, logger=logger_in(tmp_path), accumulate_grad_batches=2, log_every_n_steps=2)
    (file,) = (tmp_path / "run").glob("events*")
    values = [(event.step, value) for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    written = [(step, len(value.tensor.string_val) // 4) for step, value in values if value.tag.startswith("events/")]
    assert written == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
    assert [(row.step, row.text) for row in rows_of(tmp_path)] == [(at // 2, f"seen {at}") for at in range(STEPS)]


def test_evaluations_count_steps_as_their_readings_do(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    module, data = module_of(), data_of()
    callback = HookCallback([Noting(schedule=Schedule()), ActivationStatistics("model.0", schedule=Schedule())])
    options: dict[str, Any] = dict(logger=logger, num_sanity_val_steps=0)
    run("fit", trainer(callback, **options), module, data)
    for stage in ("test", "predict"):
        run(stage, trainer(callback, **options), module, data)
    found = rows_of(tmp_path, "detector")
    steps = {
        stage: [row.step for row in found if row.stage == stage] for stage in ("train", "validate", "test", "predict")
    }
    half, whole = 3, STEPS
    assert steps == {
        "train": list(range(whole)),
        "validate": [whole - 1] * half,
        "test": list(range(1, whole + 1)),
        "predict": list(range(1, whole + 1)),
    }
    logged = {row.stage: row.step for row in read_compact(tmp_path / "run")}
    assert all(steps[stage][-1] == step for stage, step in logged.items())


def test_a_warning_is_noted_once_for_each_text_at_its_step_and_heard_as_before(tmp_path: Path) -> None:
    def warning(_: Any, __: Any, batch: int) -> None:
        _warned.warn(f"batch {batch // 2}")
        warnings.warn("another package's", stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback = HookCallback(ActivationStatistics("model.0"))
        found = marks(tmp_path, callback, OnEvent(ON_START, warning), kinds=("warning",))
    assert found == [(0, "", "batch 0"), (2, "", "batch 1"), (4, "", "batch 2")]
    texts = [str(one.message) for one in caught if one.filename == __file__]
    assert texts.count("batch 1") == 2 and texts.count("another package's") == STEPS


def test_filters_decide_what_is_heard_and_not_what_is_noted(tmp_path: Path) -> None:
    filters = list(warnings.filters)

    def warning(_: Any, __: Any, batch: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if batch == 1 else "error")
            if batch:
                _warned.warn(f"batch {batch}", RuntimeWarning)

    callback = HookCallback(ActivationStatistics("model.0"))
    with pytest.raises(RuntimeWarning, match="batch 2"):
        fit(module_of(), data_of(), callback, OnEvent(ON_START, warning), logger=logger_in(tmp_path))
    assert [(row.step, row.kind, row.text) for row in rows_of(tmp_path)] == [
        (1, "warning", "batch 1"),
        (2, "warning", "batch 2"),
        (2, "exception", "RuntimeWarning: batch 2"),
    ]
    assert warnings.filters == filters


def test_warnings_of_the_start_belong_to_the_first_step(tmp_path: Path) -> None:
    callback = HookCallback(controllers=plus_one(Schedule(stages="test"), hook_id="later"))
    with told("FunctionController.*is off in this whole predict"):
        run("predict", trainer(callback, logger=logger_in(tmp_path)), module_of(), data_of())
    (row,) = rows_of(tmp_path)
    assert row[:3] == ("predict", 0, "warning") and "is off in this whole predict" in row.text


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    module, data = module_of(), data_of()
    first = trainer(HookCallback(ActivationStatistics("model.0")), default_root_dir=tmp_path)
    run("fit", first, module, data)
    first.save_checkpoint(tmp_path / "one.ckpt")
    again = trainer(HookCallback(ActivationStatistics("model.0")), logger=logger_in(tmp_path), max_epochs=2)
    run("fit", again, module_of(), data, ckpt_path=tmp_path / "one.ckpt")
    (row,) = rows_of(tmp_path)
    assert row[:4] == ("train", STEPS, "resumed", f"training goes on from step {STEPS}, in epoch 1")


@pytest.mark.parametrize("error", [ValueError("the batch broke"), KeyboardInterrupt()])
def test_an_exception_is_on_the_disk_before_the_trainer_is_through(error: BaseException, tmp_path: Path) -> None:
    def breaking(_: Any, __: Any, batch: int) -> None:
        if batch == 3:
            raise error

    found: list[EventRow] = []
    callbacks = [
        HookCallback(ActivationStatistics("model.0")),
        HookCallback(ActivationStatistics("model.0", name="second")),
        OnEvent(ON_START, breaking),
        OnEvent("on_exception", lambda *_: found.extend(rows_of(tmp_path))),
    ]
    with pytest.raises((ValueError, SystemExit)):
        fit(module_of(), data_of(), *callbacks, logger=logger_in(tmp_path))
    text = "ValueError: the batch broke" if isinstance(error, ValueError) else "KeyboardInterrupt"
    assert found == [EventRow("train", 3, "exception", text)]  # of two callbacks, the first says it
    assert not list(_warned.listeners)


def test_a_run_keeps_so_many_events_and_says_how_many_more_there_were(tmp_path: Path) -> None:
    class Chatty(Detector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            for index in range(100):
                self.report_event(f"{ctx.moment.step}.{index} " + "x" * 5000)

    def breaking(_: Any, __: Any, batch: int) -> None:
        if batch == 4:
            raise ValueError("late")

    callback = HookCallback(Chatty("model.0", schedule=Schedule(stages="train")))
    with pytest.raises(ValueError, match="late"):
        fit(module_of(), data_of(), callback, OnEvent(ON_START, breaking), logger=logger_in(tmp_path))
    found = rows_of(tmp_path)
    assert [row.kind for row in found] == ["detector"] * MOST + ["exception", "left out"]
    assert found[MOST - 1].text.startswith("1.99 ") and max(len(row.text) for row in found) == 599
    assert found[-1].text == "200 more events: of a run the first 200 are kept" and found[-2].step == 4


def test_two_callbacks_write_apart(tmp_path: Path) -> None:
    callbacks = [HookCallback(Noting(text=text, schedule=Schedule(stages="train"))) for text in ("one", "two")]
    found = marks(tmp_path, *callbacks, kinds=())
    expected = [(step, "Noting", f"{text} {step}") for step in range(STEPS) for text in ("one", "two")]
    assert found == expected


class Broken(TensorBoardLogger):
    """A logger whose disk is full from some step on."""

    def fill(self) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError("no space left")

        self.experiment._get_file_writer().add_summary = full


@pytest.mark.documents("reliability/a-logger-raises-when-a-runs-last-events-are-written")
def test_a_logger_that_fails_at_the_end_hides_no_exception(tmp_path: Path) -> None:
    logger = Broken(str(tmp_path), name=None, version="run")

    def breaking(_: Any, __: Any, batch: int) -> None:
        if batch == 2:
            logger.fill()
            raise ValueError("the batch broke")

    callback = HookCallback(ActivationStatistics("model.0"), log_hyperparams=False)
    with (
        told("the run's last events could not be written: OSError: no space left"),
        pytest.raises(ValueError, match="the batch broke"),
    ):
        fit(module_of(), data_of(), callback, OnEvent(ON_START, breaking), logger=logger)
    assert not callback.detectors[0].registered and not list(_warned.listeners)


@pytest.mark.parametrize("kind", ["tensorboard", "csv", "none"])
def test_a_run_is_bit_identical_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    logger: Any = {"tensorboard": logger_in(tmp_path), "csv": CSVLogger(str(tmp_path)), "none": False}[kind]
    finals = []
    for callbacks in ([], [HookCallback([Noting(schedule=Schedule()), ActivationStatistics("model.0")])]):
        pl.seed_everything(3)
        module = module_of()
        runner = fit(module, data_of(), *callbacks, logger=logger if callbacks else False)
        finals.append(fingerprint(module, runner))
    assert_bit_equal(*finals)
    assert not list(_warned.listeners)


def test_a_copy_made_in_a_run_is_in_none(tmp_path: Path) -> None:
    copies: list[HookCallback] = []
    callback = HookCallback(Noting(schedule=Schedule(stages="train")))

    def copying(_: Any, __: Any, batch: int) -> None:
        if batch == 2:
            copies.extend([copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))])

    fit(module_of(), data_of(), callback, OnEvent(ON_START, copying), logger=logger_in(tmp_path / "one"))
    assert len(rows_of(tmp_path / "one")) == STEPS
    for index, one in enumerate(copies):
        fit(module_of(), data_of(), one, logger=logger_in(tmp_path / str(index)))
        assert len(rows_of(tmp_path / str(index))) == STEPS


def test_hostile_texts_are_written_as_they_are(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "\u202egnp", "two\nlines\0", "half \ud800 pair", ""]

    class Hostile(Detector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            for text in texts:
                self.report_event(text, text)

    callback = HookCallback(Hostile("model.0", schedule=Schedule(batches=0, stages="train"), name="<b>"))
    fit(module_of(), data_of(), callback, logger=logger_in(tmp_path))
    found = rows_of(tmp_path)
    assert [row.text for row in found] == [row.layer for row in found]
    assert [row.text for row in found] == [*texts[:3], "half \\ud800 pair", ""] and found[0].hook == "<b>"
