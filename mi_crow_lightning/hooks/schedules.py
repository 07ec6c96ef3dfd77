"""When a hook is on, in the Trainer's time: stages, epochs, batches, steps.

A schedule answers one question, `due`, for one `Moment`. Every field of a `Schedule` narrows it, and schedules join
with ``&``, ``|`` and ``~``. A hook's ``enable()`` and ``disable()`` are independent of its schedule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from mi_crow_lightning._arguments import check_flag, listed, not_known, one_of, whole_number
from mi_crow_lightning._joined import folded, rejoined, steps_of, written
from mi_crow_lightning._shown import shown
from mi_crow_lightning.choices import StageName

__all__ = [
    "EVALUATIONS",
    "IN_STATES",
    "AllOf",
    "AnyOf",
    "LoggedSteps",
    "Moment",
    "Not",
    "Schedule",
    "Stage",
    "StageLike",
    "When",
]


class Stage(str, Enum):
    """A stage of the Trainer. Its sanity check is not a stage: hooks are off there."""

    TRAIN = "train"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"

    @classmethod
    def of(cls, value: StageLike | str, argument: str = "stage") -> Stage:
        """Return the stage that ``value`` names.

        Args:
            value: a stage, or its name.
            argument: the name of the argument that ``value`` was passed as, for the error.

        Raises:
            ValueError: ``value`` does not name a stage.
        """
        names = [member.value for member in cls]
        if isinstance(value, str) and value not in names and value in _OTHER_NAMES:
            raise ValueError(f"{not_known(argument, value, names, guess=False)}. {_OTHER_NAMES[value]}")
        return cls(one_of(argument, value, names))


StageLike: TypeAlias = Stage | StageName
"""A stage, or its name."""

_OTHER_NAMES = {
    **dict.fromkeys(("fit", "fitting"), "A fit has two stages: 'train', and 'validate' for its validation"),
    **dict.fromkeys(("training",), "'train' is meant"),
    **dict.fromkeys(("val", "valid", "validation", "validating"), "'validate' is meant"),
    **dict.fromkeys(("testing",), "'test' is meant"),
    **dict.fromkeys(("prediction", "predicting", "inference", "generate"), "'predict' is meant"),
    **dict.fromkeys(("eval", "evaluate", "evaluation"), "'validate' or 'test' is meant"),
    **dict.fromkeys(("sanity_check", "sanity_checking"), "Hooks are off in the sanity check, which is not a stage"),
}

IN_STATES = ("", *(stage.value for stage in Stage))
"""The keys of what states hold for each stage; ``""`` is outside a Trainer."""

EVALUATIONS = (Stage.VALIDATE.value, Stage.TEST.value, Stage.PREDICT.value)


@dataclass(frozen=True)
class Moment:
    """One batch in the Trainer's time.

    Attributes:
        stage: the Trainer's stage.
        epoch: index of the epoch, from 0.
        batch_idx: index of the batch in its epoch, from 0.
        dataloader_idx: index of the dataloader that the batch is from.
        step: how many steps were taken before this batch, as Lightning counts them for its loggers.
        logged: whether readings are written once the step of this batch is done.
    """

    stage: Stage
    epoch: int = 0
    batch_idx: int = 0
    dataloader_idx: int = 0
    step: int = 0
    logged: bool = False


class When(ABC):
    """The base class of schedules, which decide when a hook is on. Subclasses override `due`."""

    @abstractmethod
    def due(self, moment: Moment) -> bool:
        """Return whether a hook is on at ``moment``."""

    def varies_in(self, stage: Stage) -> bool:
        """Return whether the schedule may be due in some batches of a stage and not in others."""
        return True

    def may_be_due_in(self, stage: Stage) -> bool:
        """Return whether the schedule may be due in a stage; ``False`` only if it certainly never is."""
        return True

    def __and__(self, other: When) -> AllOf:
        return AllOf(self, other)

    def __or__(self, other: When) -> AnyOf:
        return AnyOf(self, other)

    def __invert__(self) -> Not:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("schedules join with & | ~: `and`, `or` and `not` would silently drop one of them")


class Schedule(When):
    """A schedule that is due where every given field agrees. A field that is left out agrees with everything.

    Args:
        stages: one or several of ``"train"``, ``"validate"``, ``"test"``, ``"predict"``.
        epochs: epochs, from 0: one, or several (a list, a ``range``).
        batches: batches of an epoch, from 0: one, or several.
        every_n_epochs: the last of each ``n`` epochs, as Lightning counts (``(epoch + 1) % n == 0``).
        every_n_batches: the last of each ``n`` batches.
        every_n_steps: the last of each ``n`` steps, with all its micro-batches.
        start_step: first step at which the hook is on.
        stop_step: first step at which the hook is off again.

    Raises:
        ValueError, TypeError: a field has a value that makes no sense for it.

    Examples:
        >>> early = Schedule(stages="train", every_n_steps=2, stop_step=4)
        >>> [early.due(Moment(Stage.TRAIN, step=step)) for step in range(6)]
        [False, True, False, True, False, False]
        >>> (early | Schedule(stages="predict")).due(Moment(Stage.PREDICT))
        True
    """

    def __init__(
        self,
        stages: StageLike | Iterable[StageLike] | None = None,
        epochs: int | range | Iterable[int] | None = None,
        batches: int | range | Iterable[int] | None = None,
        every_n_epochs: int | None = None,
        every_n_batches: int | None = None,
        every_n_steps: int | None = None,
        start_step: int | None = None,
        stop_step: int | None = None,
    ) -> None:
        self.stages = _checked_stages(stages)
        self.epochs = _checked_indices("epochs", epochs)
        self.batches = _checked_indices("batches", batches)
        self.every_n_epochs = _checked_whole("every_n_epochs", every_n_epochs, least=1)
        self.every_n_batches = _checked_whole("every_n_batches", every_n_batches, least=1)
        self.every_n_steps = _checked_whole("every_n_steps", every_n_steps, least=1)
        self.start_step = _checked_whole("start_step", start_step, least=0)
        self.stop_step = _checked_whole("stop_step", stop_step, least=0)
        if self.start_step is not None and self.stop_step is not None and self.stop_step <= self.start_step:
            raise ValueError(
                f"start_step={start_step} and stop_step={stop_step} leave no step: stop_step must be larger"
            )

    def due(self, moment: Moment) -> bool:
        """Return whether every field agrees with ``moment``."""
        return (
            self._covers(moment)
            and (self.batches is None or moment.batch_idx in self.batches)
            and _last_of_n(moment.batch_idx, self.every_n_batches)
            and _last_of_n(moment.step, self.every_n_steps)
        )

    def _covers(self, moment: Moment) -> bool:
        """Return whether the fields agree that choose a part of the run, and not some of its batches."""
        return (
            (self.stages is None or moment.stage in self.stages)
            and (self.epochs is None or moment.epoch in self.epochs)
            and _last_of_n(moment.epoch, self.every_n_epochs)
            and (self.start_step is None or moment.step >= self.start_step)
            and (self.stop_step is None or moment.step < self.stop_step)
        )

    def _has_rhythm(self) -> bool:
        """Return whether fields choose some of the batches."""
        return any(field is not None for field in (self.batches, self.every_n_batches, self.every_n_steps))

    def varies_in(self, stage: Stage) -> bool:
        """Return whether another field than ``stages`` is set."""
        narrow = any(value is not None for name, value in vars(self).items() if name != "stages")
        return narrow and (self.stages is None or stage in self.stages)

    def may_be_due_in(self, stage: Stage) -> bool:
        """Return whether ``stage`` is one of the schedule's stages."""
        return self.stages is None or stage in self.stages

    def __repr__(self) -> str:
        fields = {name: value for name, value in vars(self).items() if value is not None}
        if self.stages is not None:
            fields["stages"] = [stage.value for stage in self.stages]
        return f"Schedule({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


class LoggedSteps(When):
    """A schedule that is due in training steps that are logged, and in all of validation and test.

    This is the default of detectors. Each logged step is seen with all its micro-batches, the steps in between cost
    nothing, and an evaluation gives one reading per epoch.

    Args:
        evaluations: whether it is due in validation and test; without them it is the default of `GradientStatistics`
            and `WeightStatistics`.

    Raises:
        TypeError: ``evaluations`` is not a bool.
    """

    def __init__(self, evaluations: bool = True) -> None:
        self.evaluations = check_flag("evaluations", evaluations)

    def due(self, moment: Moment) -> bool:
        """Return whether ``moment`` is logged (in training), or belongs to validation or test."""
        if moment.stage is Stage.TRAIN:
            return moment.logged
        return self.evaluations and moment.stage in (Stage.VALIDATE, Stage.TEST)

    def varies_in(self, stage: Stage) -> bool:
        """Return whether ``stage`` is training."""
        return stage is Stage.TRAIN

    def may_be_due_in(self, stage: Stage) -> bool:
        """Return whether ``stage`` is training, or an evaluation in which it is due."""
        return stage is Stage.TRAIN or (self.evaluations and stage is not Stage.PREDICT)

    def __repr__(self) -> str:
        return f"LoggedSteps({'' if self.evaluations else 'evaluations=False'})"


class _Joined(When):
    """Schedules that are joined. Nothing here calls itself, so they may be joined as often as you like."""

    schedules: tuple[When, ...]

    def due(self, moment: Moment) -> bool:
        """Return whether the joined schedules are due; the later ones are only asked if it depends on them."""
        asked: list[tuple[When, Iterator[When]]] = [(self, iter(self.schedules))]
        schedule = next(asked[0][1])
        while True:
            while parts := _parts_of(schedule):
                asked.append((schedule, iter(parts)))
                schedule = next(asked[-1][1])
            due = bool(schedule.due(moment))
            while asked:
                joined, others = asked[-1]
                if isinstance(joined, Not):
                    due = not due
                elif due is isinstance(joined, AllOf) and (following := next(others, None)) is not None:
                    schedule = following
                    break
                asked.pop()
            else:
                return due

    def varies_in(self, stage: Stage) -> bool:
        """Return whether one of the schedules may vary."""
        return _outlook(self, stage)[0]

    def may_be_due_in(self, stage: Stage) -> bool:
        """Return whether the schedules may be due in ``stage``, as they are joined."""
        return _outlook(self, stage)[1]

    def __repr__(self) -> str:
        whole: When = self
        return written(whole, _pieces_of)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to make a copy: a list of the parts, so that a copy or pickle of a deep one is not deep."""
        if not _parts_of(self):
            return super().__reduce_ex__(protocol)
        whole: When = self
        return rejoined, (steps_of(whole, _parts_of),)


class AllOf(_Joined):
    """A schedule that is due where all of several schedules are: ``one & other``.

    Args:
        *parts: the schedules.
        schedules: more schedules, for configuration files, in which arguments have names.

    Raises:
        TypeError, ValueError: there are none, or one is not a schedule.
    """

    def __init__(self, *parts: When, schedules: Sequence[When] = ()) -> None:
        self.schedules = _checked_schedules(type(self).__name__, parts, schedules)


class AnyOf(_Joined):
    """A schedule that is due where at least one of several is: ``one | other``. It has the arguments of `AllOf`."""

    def __init__(self, *parts: When, schedules: Sequence[When] = ()) -> None:
        self.schedules = _checked_schedules(type(self).__name__, parts, schedules)


class Not(_Joined):
    """A schedule that is due where ``schedule`` is not: ``~schedule``."""

    def __init__(self, schedule: When) -> None:
        if not isinstance(schedule, When):
            raise TypeError(f"Not joins schedules, not {type(schedule).__name__} (schedule={shown(schedule)})")
        self.schedules = (schedule,)

    @property
    def schedule(self) -> When:
        """The inner schedule."""
        return self.schedules[0]


def _parts_of(schedule: When) -> tuple[When, ...]:
    """Return the parts of a joined schedule; none for any other, and for a user's own kind of joining."""
    return schedule.schedules if type(schedule) in (AllOf, AnyOf, Not) else ()  # type: ignore[attr-defined]


def _outlook(whole: When, stage: Stage) -> tuple[bool, bool]:
    """Return whether joined schedules may vary in a stage, and whether they may be due there."""

    def parts_of(schedule: When) -> tuple[When, ...]:
        return schedule.schedules if isinstance(whole, _Joined) and schedule is whole else _parts_of(schedule)

    def of(schedule: When, parts: list[tuple[bool, bool]]) -> tuple[bool, bool]:
        if not parts:
            return schedule.varies_in(stage), schedule.may_be_due_in(stage)
        varies = any(part[0] for part in parts)
        if isinstance(schedule, Not):
            return varies, varies or not parts[0][1]
        return varies, (all if isinstance(schedule, AllOf) else any)(part[1] for part in parts)

    return folded(whole, parts_of, of)


def _pieces_of(schedule: When) -> list[When | str]:
    if not isinstance(schedule, _Joined):
        return [repr(schedule)]
    first, *others = schedule.schedules
    kind = next(kind for kind in (AllOf, AnyOf, Not) if isinstance(schedule, kind))
    return [f"{kind.__name__}(", first, *(piece for other in others for piece in (", ", other)), ")"]


def _last_of_n(index: int, n: int | None) -> bool:
    return n is None or (index + 1) % n == 0


def _checked_stages(value: StageLike | Iterable[StageLike] | None) -> tuple[Stage, ...] | None:
    if value is None:
        return None
    given = [value] if isinstance(value, str) else listed("stages", value, "stages", "['validate', 'test']")
    if not given:
        raise ValueError(
            "stages is empty, so the hook would never be on: leave stages out to have it on in every stage"
        )
    return tuple(Stage.of(stage, "stages") for stage in given)


def _checked_indices(name: str, value: int | Iterable[int] | None) -> range | frozenset[int] | None:
    if value is None:
        return value
    if isinstance(value, (str, Mapping)) or not isinstance(value, (int, Iterable)):
        raise TypeError(f"{name}={shown(value)} must be a whole number or several, e.g. 3, [0, 5] or range(10)")
    given: Collection[Any]
    if isinstance(value, range):
        given, ends = value, [*value[:1], *value[-1:]]  # one of billions is as good as any
    else:
        given = ends = [value] if isinstance(value, int) else listed(name, value, "whole numbers", "[0, 5]")
    for index in ends:
        _checked_index(name, index, least=0)
    if not given:
        raise ValueError(
            f"{name} is empty, so the hook would never be on: leave {name} out to have it on in all of them"
        )
    return given if isinstance(given, range) else frozenset(given)


def _checked_whole(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else _checked_index(name, value, least)


def _checked_index(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={shown(value)} must be a whole number")
    if value < least:
        raise ValueError(f"{name}={shown(value)} must be {least} or more")
    return whole_number(name, value, least)


def _checked_schedules(name: str, parts: tuple[When, ...], more: Sequence[When]) -> tuple[When, ...]:
    hint = "[Schedule(stages='train'), ...]"
    if isinstance(more, When):
        raise TypeError(f"{name}: schedules={shown(more)} is one schedule: give a list, schedules={hint}")
    schedules = (*parts, *listed("schedules", more, "schedules", hint))
    if not schedules:
        raise ValueError(f"{name}() needs at least one schedule, as schedules={hint}")
    for schedule in schedules:
        if not isinstance(schedule, When):
            raise TypeError(f"{name} joins schedules, not {type(schedule).__name__} ({shown(schedule)})")
    return schedules
