"""Schedules: `due` against a slow definition, the laws of their joins, and every refusal."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_crow_lightning.hooks import AllOf, AnyOf, LoggedSteps, Moment, Not, Schedule, Stage
from mi_crow_lightning.hooks.schedules import When

moments = st.builds(
    Moment,
    stage=st.sampled_from(Stage),
    epoch=st.integers(0, 6),
    batch_idx=st.integers(0, 6),
    dataloader_idx=st.integers(0, 1),
    step=st.integers(0, 12),
    logged=st.booleans(),
)
several = st.none() | st.integers(0, 6) | st.lists(st.integers(0, 6), min_size=1) | st.builds(range, st.integers(1, 6))
fields = st.fixed_dictionaries(
    {},
    optional={
        "stages": st.none()
        | st.sampled_from([*Stage, "train", "predict"])
        | st.lists(st.sampled_from(["train", "validate", Stage.TEST]), min_size=1),
        "epochs": several,
        "batches": several,
        "every_n_epochs": st.none() | st.integers(1, 4),
        "every_n_batches": st.none() | st.integers(1, 4),
        "every_n_steps": st.none() | st.integers(1, 4),
        "start_step": st.none() | st.integers(0, 5),
        "stop_step": st.none() | st.integers(6, 12),
    },
)
schedules = st.recursive(
    fields.map(lambda given: Schedule(**given)) | st.booleans().map(LoggedSteps),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: AllOf(*parts))
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: AnyOf(*parts))
        | inner.map(Not)
    ),
    max_leaves=4,
)


def slowly_due(given: dict[str, Any], moment: Moment) -> bool:
    """The definition in words: no given field is against it; 'every n' lists the last of each n."""

    def listed(value: Any, index: int) -> bool:
        return index in ([value] if isinstance(value, int) else list(value))

    def last_of_each(n: int, index: int) -> bool:
        return index in [group * n + n - 1 for group in range(30)]

    stages = given.get("stages")
    against = [
        stages is not None
        and moment.stage.value
        not in [str(getattr(s, "value", s)) for s in ([stages] if isinstance(stages, str) else stages)],
        given.get("epochs") is not None and not listed(given["epochs"], moment.epoch),
        given.get("batches") is not None and not listed(given["batches"], moment.batch_idx),
        given.get("every_n_epochs") is not None and not last_of_each(given["every_n_epochs"], moment.epoch),
        given.get("every_n_batches") is not None and not last_of_each(given["every_n_batches"], moment.batch_idx),
        given.get("every_n_steps") is not None and not last_of_each(given["every_n_steps"], moment.step),
        given.get("start_step") is not None and moment.step < given["start_step"],
        given.get("stop_step") is not None and not moment.step < given["stop_step"],
    ]
    return not any(against)


@given(fields, moments)
def test_a_schedule_is_due_where_no_field_is_against_it(given: dict[str, Any], moment: Moment) -> None:
    assert Schedule(**given).due(moment) == slowly_due(given, moment)


@given(schedules, schedules, moments)
def test_joins_are_those_of_logic(a: When, b: When, moment: Moment) -> None:
    one, other = a.due(moment), b.due(moment)
    assert (a & b).due(moment) == AllOf(a, b).due(moment) == (one and other)
    assert (a | b).due(moment) == AnyOf(a, b).due(moment) == (one or other)
    assert (~a).due(moment) == Not(a).due(moment) == (not one)
    assert (~(a & b)).due(moment) == (~a | ~b).due(moment)
    assert (a | ~a).due(moment) and not (a & ~a).due(moment)
    assert AllOf(a).due(moment) == AnyOf(a).due(moment) == one


@given(moments)
def test_the_default_of_detectors(moment: Moment) -> None:
    expected = {"train": moment.logged, "validate": True, "test": True, "predict": False}
    assert LoggedSteps().due(moment) == expected[moment.stage.value]
    assert Schedule().due(moment)


@given(schedules, moments)
def test_the_repr_is_what_one_would_type(schedule: When, moment: Moment) -> None:
    again = eval(repr(schedule), dict(Schedule=Schedule, AllOf=AllOf, AnyOf=AnyOf, Not=Not, LoggedSteps=LoggedSteps))
    assert again.due(moment) == schedule.due(moment)
    assert repr(again) == repr(schedule)


def test_reprs() -> None:
    assert repr(Schedule()) == "Schedule()"
    assert repr(Schedule("train", every_n_steps=2)) == "Schedule(stages=['train'], every_n_steps=2)"
    joined = ~(Schedule(epochs=range(2)) & LoggedSteps() | Schedule(stop_step=3))
    assert repr(joined) == "Not(AnyOf(AllOf(Schedule(epochs=range(0, 2)), LoggedSteps()), Schedule(stop_step=3)))"


def test_an_iterator_of_epochs_is_read_once() -> None:
    schedule = Schedule(stages=iter(["train", "test"]), epochs=iter([1, 2]))
    for _ in range(2):
        assert schedule.due(Moment(Stage.TEST, epoch=2)) and not schedule.due(Moment(Stage.TEST, epoch=3))


def test_schedules_pickle() -> None:
    schedule = pickle.loads(pickle.dumps(Schedule("train", epochs=[1]) | ~LoggedSteps()))
    assert schedule.due(Moment(Stage.PREDICT)) and not schedule.due(Moment(Stage.VALIDATE))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"stages": "fit"},
            ValueError,
            "stages='fit' is not known: choose one of 'train', 'validate', 'test', 'predict'",
        ),
        ({"stages": ["train", "eval"]}, ValueError, "stages='eval' is not known"),
        ({"stages": []}, ValueError, "stages is empty, so the hook would never be on"),
        ({"epochs": []}, ValueError, "epochs is empty"),
        ({"batches": ()}, ValueError, "batches is empty"),
        ({"epochs": "3"}, TypeError, "epochs='3' must be a whole number or several"),
        ({"batches": 1.5}, TypeError, r"batches=1.5 must be a whole number or several, e.g. 3, \[0, 5\]"),
        ({"epochs": [1, 2.0]}, TypeError, "epochs=2.0 must be a whole number"),
        ({"epochs": True}, TypeError, "epochs=True must be a whole number"),
        ({"epochs": -1}, ValueError, "epochs=-1 must be 0 or more"),
        ({"batches": [3, -2]}, ValueError, "batches=-2 must be 0 or more"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs=0 must be 1 or more"),
        ({"every_n_batches": -1}, ValueError, "every_n_batches=-1 must be 1 or more"),
        ({"every_n_steps": True}, TypeError, "every_n_steps=True must be a whole number"),
        ({"every_n_steps": 2.0}, TypeError, "every_n_steps=2.0 must be a whole number"),
        ({"start_step": -1}, ValueError, "start_step=-1 must be 0 or more"),
        ({"stop_step": -1}, ValueError, "stop_step=-1 must be 0 or more"),
        ({"start_step": 4, "stop_step": 4}, ValueError, "start_step=4 and stop_step=4 leave no step"),
    ],
)
def test_what_a_field_cannot_mean_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Schedule(**given)


def test_only_schedules_join() -> None:
    with pytest.raises(ValueError, match=r"AllOf\(\) needs at least one schedule"):
        AllOf()
    with pytest.raises(ValueError, match=r"AnyOf\(\) needs at least one schedule"):
        AnyOf()
    with pytest.raises(TypeError, match=r"AllOf joins schedules, not str \('train'\)"):
        Schedule() & "train"  # type: ignore[operator]
    with pytest.raises(TypeError, match="AnyOf joins schedules, not NoneType"):
        AnyOf(Schedule(), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Not joins schedules, not int"):
        Not(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "join",
    [
        lambda: Schedule("train") and Schedule(epochs=1),
        lambda: LoggedSteps() or Schedule("predict"),
        lambda: not (Schedule("train") & LoggedSteps()),
        lambda: not ~Schedule("train"),
    ],
)
def test_python_s_and_or_and_not_between_schedules_are_refused(join: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"schedules join with & \| ~: `and`, `or` and `not` would silently drop one"):
        join()


@given(schedules, moments)
def test_a_stage_in_which_one_is_due_is_never_ruled_out(schedule: When, moment: Moment) -> None:
    assert schedule.may_be_due_in(moment.stage) or not schedule.due(moment)


@pytest.mark.parametrize(
    ("schedule", "stages"),
    [
        (Schedule(epochs=3), "train validate test predict"),
        (Schedule(["train", "test"], epochs=3), "train test"),
        (LoggedSteps(), "train validate test"),
        (LoggedSteps() | Schedule("predict", batches=0), "train validate test predict"),
        (LoggedSteps() & Schedule(["predict", "test"]), "test"),
        (~Schedule("train"), "validate test predict"),
        (~Schedule("train", epochs=0), "train validate test predict"),
        (~LoggedSteps(), "train predict"),
        (~~Schedule("train"), "train"),
    ],
)
def test_stages_in_which_one_may_be_due(schedule: When, stages: str) -> None:
    assert [stage.value for stage in Stage if schedule.may_be_due_in(stage)] == stages.split()
